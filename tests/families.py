"""Small real models of every family, built from their configurations, and where each keeps its parts, written out."""

from dataclasses import dataclass

import torch
from conftest import SIZE
from transformers import AutoConfig, AutoModelForCausalLM

_GPT2 = {"n_layer": 5, "n_embd": 32, "n_head": 2, "n_inner": 48, "n_positions": 64}
_OPT = {
    "num_hidden_layers": 5,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
}
_LLAMA = {
    "num_hidden_layers": 5,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GROUPED = {**_LLAMA, "num_key_value_heads": 1, "head_dim": 16}

_IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Family:
    """One family: model type, sizes, and the full names of blocks, rewrite module (in a block), final norm."""

    model_type: str
    sizes: dict
    blocks: str
    rewrite_module: str
    norm: str | None


FAMILIES = {
    "gpt2": Family("gpt2", _GPT2, "transformer.h", "mlp.c_proj", "transformer.ln_f"),
    "gptj": Family("gptj", {**_GPT2, "rotary_dim": 8}, "transformer.h", "mlp.fc_out", "transformer.ln_f"),
    "gpt_neox": Family("gpt_neox", _LLAMA, "gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),
    "opt": Family(
        "opt", {**_OPT, "word_embed_proj_dim": 32}, "model.decoder.layers", "fc2", "model.decoder.final_layer_norm"
    ),
    "opt-350m": Family(
        "opt", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, "model.decoder.layers", "fc2", None
    ),
    "llama": Family("llama", _GROUPED, "model.layers", "mlp.down_proj", "model.norm"),
    "mistral": Family("mistral", {**_GROUPED, "sliding_window": 8}, "model.layers", "mlp.down_proj", "model.norm"),
    "qwen2": Family("qwen2", _GROUPED, "model.layers", "mlp.down_proj", "model.norm"),
    "qwen3": Family("qwen3", _GROUPED, "model.layers", "mlp.down_proj", "model.norm"),
    "gemma": Family("gemma", _GROUPED, "model.layers", "mlp.down_proj", "model.norm"),
    "gemma2": Family("gemma2", {**_GROUPED, "sliding_window": 8}, "model.layers", "mlp.down_proj", "model.norm"),
    "gemma3": Family("gemma3_text", {**_GROUPED, "sliding_window": 8}, "model.layers", "mlp.down_proj", "model.norm"),
    "gemma3-images": Family(
        "gemma3",
        {"text_config": {**SIZE, **_GROUPED, "sliding_window": 8}, "vision_config": _IMAGES, "mm_tokens_per_image": 4},
        "model.language_model.layers",
        "mlp.down_proj",
        "model.language_model.norm",
    ),
    "phi": Family("phi", _LLAMA, "model.layers", "mlp.fc2", "model.final_layernorm"),
    "phi3": Family("phi3", {**_LLAMA, "num_key_value_heads": 1}, "model.layers", "mlp.down_proj", "model.norm"),
}
NORMED = ("opt-350m", "gemma2", "gemma3", "gemma3-images")  # a norm stands behind the rewrite module


def build_family(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """A random model of the family, with weights large enough that its answers differ from prompt to prompt."""
    family = FAMILIES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family.model_type, **(SIZE | family.sizes | changes))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
            else:  # norms and biases that are not all alike
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.to(dtype)


def rewrite_module(model, name: str, layer: int):
    family = FAMILIES[name]
    return model.get_submodule(f"{family.blocks}.{layer}.{family.rewrite_module}")


STARCODER = {"blocks": "model.layers", "rewrite_module": "mlp.c_proj", "final_norm": "model.norm"}


def starcoder():
    """A family that is not in the registry."""
    sizes = {**SIZE, **FAMILIES["mistral"].sizes}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("starcoder2", **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return model
