"""Where a model family keeps its blocks, rewrite modules, norm and head; resolved from the loaded model."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coachhook.errors import CoachHookError


class ArchitectureError(CoachHookError, ValueError):
    """The model's family is unknown, or a layer asked for does not exist."""


@dataclass(frozen=True)
class Architecture:
    """Dotted names: `blocks` and `final_norm` from the backbone, `rewrite_module` from a block."""

    blocks: str
    rewrite_module: str
    final_norm: str


_LLAMA = Architecture("layers", "mlp.down_proj", "norm")

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("h", "mlp.c_proj", "ln_f"),
    "gptj": Architecture("h", "mlp.fc_out", "ln_f"),
    "gpt_neox": Architecture("layers", "mlp.dense_4h_to_h", "final_layer_norm"),
    "phi": Architecture("layers", "mlp.fc2", "final_layernorm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
}


class ModelParts:
    """The parts of a causal language model that editing needs.

    `backbone` is the model without its head (its output is the normed last hidden state), `blocks` its
    transformer blocks in order, `head` maps hidden states (…, d) to logits (…, vocabulary).

    Raises:
        ArchitectureError: the family is not in `ARCHITECTURES`.
    """

    def __init__(self, model: PreTrainedModel):
        family = model.config.model_type
        if family not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise ArchitectureError(
                f"model family {family!r} is unknown: known are {known}; add one line to ARCHITECTURES"
            )
        architecture = ARCHITECTURES[family]
        self.model = model
        self.backbone: nn.Module = model.base_model
        self.blocks: nn.ModuleList = self.backbone.get_submodule(architecture.blocks)
        self.final_norm: nn.Module = self.backbone.get_submodule(architecture.final_norm)
        self.head: nn.Module = model.get_output_embeddings()
        self.context_length: int = model.config.max_position_embeddings
        self._rewrite_name = architecture.rewrite_module

    def rewrite_module(self, layer: int) -> nn.Module:
        """The down-projection of block `layer`.

        Raises:
            ArchitectureError: the model has no such layer.
        """
        if not 0 <= layer < len(self.blocks):
            raise ArchitectureError(f"layers: {layer} does not exist, the model has layers 0 to {len(self.blocks) - 1}")
        module = self.blocks[layer].get_submodule(self._rewrite_name)
        return getattr(module, "base_layer", module)  # behind the wrapper of a peft adapter

    def width(self, layer: int) -> int:
        """m, the width of the keys at `layer`."""
        return weight_matrix(self.rewrite_module(layer)).shape[1]


def weight_matrix(module: nn.Module) -> Float[Tensor, "d m"]:
    """The rewrite module's W0 as (output d) × (input m); a view. GPT-2 keeps its transpose (`Conv1D`)."""
    weight = module.weight
    return weight.T if isinstance(module, Conv1D) else weight
