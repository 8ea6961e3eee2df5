import copy
import warnings

import pytest
import torch
from conftest import build_model
from families import FAMILIES, build_family, rewrite_module
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from coachhook import declare_architecture
from coachhook.architecture_check import check_parts
from coachhook.architectures import ARCHITECTURES, ArchitectureError, ModelParts, weight_matrix
from coachhook.residuals import norms_behind
from coachhook.tracing import block_inputs, rewrite_inputs

IDS = torch.tensor([[5, 9, 3, 7, 2]])
BLOOM = {"blocks": "transformer.h", "rewrite_module": "mlp.dense_4h_to_h", "final_norm": "transformer.ln_f"}
SMALL = {"vocab_size": 400, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "pad_token_id": 0}


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def tiny(name):
    return build_family(name)


def build(model_type, **sizes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SMALL, bos_token_id=0, eos_token_id=0, **sizes)
    return AutoModelForCausalLM.from_config(config).eval()


def bloom(**changes):
    model = build("bloom")
    for key, value in changes.items():
        setattr(model.config, key, value)
    return model


def test_every_family_is_tested():
    assert {family.model_type for family in FAMILIES.values()} == set(ARCHITECTURES)


@torch.no_grad()
def test_every_family_keeps_its_parts_where_we_say(name, tiny):
    parts, family = ModelParts(tiny), FAMILIES[name]
    assert parts.blocks is tiny.get_submodule(family.blocks)
    assert parts.context_length == 64
    for layer in range(5):
        assert parts.rewrite_module(layer) is rewrite_module(tiny, name, layer)
        assert parts.shape(layer) == parts.base_weight(layer).shape == (32, parts.width(layer))
    with rewrite_inputs(parts, [1], stop=False) as keys, block_inputs(parts, [0, 4], stop=False) as calls:
        logits = tiny(IDS, use_cache=False).logits
    assert keys[1].shape == (1, 5, parts.width(1))
    last = calls[4].run(parts.blocks[4], calls[4].hidden)
    torch.testing.assert_close(parts.head(parts.final_norm(last)), logits, rtol=1e-5, atol=1e-5)
    normed = parts.backbone(IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(parts.head(normed), logits, rtol=1e-5, atol=1e-5)
    if family.norm is not None:
        expected = tiny.get_submodule(family.norm)(last)
        torch.testing.assert_close(parts.final_norm(last), expected, rtol=0, atol=0)
    check_parts(parts)


@torch.no_grad()
def test_the_weight_matrix_maps_keys_to_the_modules_output(tiny):
    module = ModelParts(tiny).rewrite_module(0)
    keys = torch.randn(2, ModelParts(tiny).width(0), generator=torch.Generator().manual_seed(0))
    bias = 0 if getattr(module, "bias", None) is None else module.bias
    torch.testing.assert_close(keys @ weight_matrix(module).T + bias, module(keys), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_truncated_pass_records_what_a_whole_pass_does(tiny):
    parts = ModelParts(tiny)
    with rewrite_inputs(parts, [0, 1], stop=False) as whole:
        tiny(IDS, use_cache=False)
    done = []
    handle = parts.blocks[2].register_forward_hook(lambda *args: done.append(True))
    with rewrite_inputs(parts, [0, 1]) as truncated:
        tiny(IDS, use_cache=False)
    handle.remove()
    assert not done
    for layer in (0, 1):
        assert torch.equal(truncated[layer], whole[layer])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())


@torch.no_grad()
def test_blocks_run_again_on_some_rows_give_those_rows(tiny):
    parts = ModelParts(tiny)
    ids = torch.tensor([[5, 9, 3, 7, 2], [1, 4, 6, 0, 0], [8, 2, 2, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    with block_inputs(parts, [1, 2], stop=False) as calls:
        parts.backbone(input_ids=ids, attention_mask=mask, use_cache=False)
    rows = torch.tensor([0, 2])
    given = calls[1].run(parts.blocks[1], calls[1].hidden[rows], rows)
    for row, count in zip(range(2), (5, 4), strict=True):
        expected = calls[2].hidden[rows[row], :count]
        torch.testing.assert_close(given[row, :count], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_keys_of_several_rows_come_back_row_by_row(tiny):
    """OPT's blocks lay all tokens in one row."""
    parts = ModelParts(tiny)
    ids = torch.tensor([[5, 9, 3, 7], [1, 4, 6, 8]])
    with rewrite_inputs(parts, [2]) as together:
        parts.backbone(ids, use_cache=False)
    for row in range(2):
        with rewrite_inputs(parts, [2]) as alone:
            parts.backbone(ids[row : row + 1], use_cache=False)
        torch.testing.assert_close(together[2][row], alone[2][0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_capped_logits_are_the_models_own():
    model = build_family("gemma2", final_logit_softcapping=2.0)
    parts, logits = ModelParts(model), model(IDS).logits
    assert 1.5 < logits.abs().max() < 2
    given = parts.head(parts.backbone(IDS).last_hidden_state)
    torch.testing.assert_close(given, logits, rtol=0, atol=1e-6)


class Renamed(LlamaForCausalLM):
    """A company's own model on known parts."""


@pytest.mark.parametrize("model_type", ["our-own", "gpt2", "opt"])
def test_a_model_is_known_by_its_parts_not_its_name(model_type):
    sizes = {key: value for key, value in FAMILIES["llama"].sizes.items() if key != "head_dim"}
    model = Renamed(LlamaConfig(vocab_size=400, bos_token_id=0, eos_token_id=0, **sizes)).eval()
    model.config.model_type = model_type
    parts = ModelParts(model)
    assert parts.rewrite_module(3) is model.model.layers[3].mlp.down_proj
    check_parts(parts)


@pytest.mark.parametrize("layer", [-1, 5])
def test_a_layer_that_does_not_exist_is_named(layer):
    with pytest.raises(ArchitectureError, match=f"layers: {layer} does not exist.* 0 to 4"):
        ModelParts(build_model("gpt2")).rewrite_module(layer)


def test_an_unknown_family_is_refused_with_what_was_found_and_how_to_declare_it():
    with pytest.raises(ArchitectureError) as caught:
        ModelParts(bloom())
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "'bloom' is unknown",
        "transformer.h (3 × BloomBlock)",
        "mlp.dense_4h_to_h (128 → 32)",
        f"architecture={BLOOM}",
        "`architecture` in config/models.yaml",
    ):
        assert words in message


def test_a_mixture_of_experts_is_not_told_to_edit_its_attention():
    with pytest.raises(ArchitectureError, match=r"MixtralDecoderLayer\) without an MLP's down-projection .* cannot be"):
        ModelParts(build("mixtral", num_local_experts=2, intermediate_size=48, num_key_value_heads=2))


@torch.no_grad()
def test_a_declared_architecture_holds_for_the_model():
    model = bloom(max_position_embeddings=64)
    declare_architecture(model, BLOOM)
    parts = ModelParts(model)
    assert parts.rewrite_module(1) is model.transformer.h[1].mlp.dense_4h_to_h
    check_parts(parts)
    assert norms_behind(parts, [0, 1, 2]) == {}
    with pytest.raises(ArchitectureError, match="unknown"):
        ModelParts(bloom(max_position_embeddings=64))  # declared for that one model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks": "transformer.layers"}, "blocks: 'transformer.layers' is no list of blocks"),
        ({"blocks": "transformer.ln_f"}, "blocks: 'transformer.ln_f' is no list of blocks"),
        ({"rewrite_module": "mlp.down"}, "rewrite_module: block 0 has no matrix 'mlp.down'"),
        ({"rewrite_module": "mlp.dense_h_to_4h"}, "does not lead back to the hidden states"),
        ({"final_norm": "norm"}, "final_norm: there is no 'norm'"),
        ({"final_norm": None}, "'final_norm' is missing; give blocks, rewrite_module, final_norm"),
        ({"norm": "x"}, "'norm' is unknown; give blocks"),
    ],
)
def test_a_wrong_declaration_is_named(changes, words):
    with pytest.raises(ArchitectureError, match=r"^architecture: ") as caught:
        declare_architecture(bloom(max_position_embeddings=64), BLOOM | changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_norm_that_is_not_the_last_one_is_found_out():
    model = bloom(max_position_embeddings=64)
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(3)
    declare_architecture(model, BLOOM | {"final_norm": "transformer.word_embeddings_layernorm"})
    with pytest.raises(ArchitectureError, match=r"logits are not those of .*word_embeddings_layernorm and head"):
        check_parts(ModelParts(model))


def test_blocks_that_scale_what_they_add_are_found_out():
    """Granite has Llama's parts; what it does with them is another thing."""
    sizes = {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
    with pytest.raises(ArchitectureError, match=r"block 1 does not add what its mlp\.down_proj gives"):
        norms_behind(ModelParts(build("granite", residual_multiplier=0.3, **sizes)), [1])
    with pytest.raises(ArchitectureError, match="head is not supported"):
        check_parts(ModelParts(build("granite", logits_scaling=4.0, **sizes)))


def test_a_model_without_a_context_length_says_what_to_set():
    model = bloom()
    declare = copy.copy(BLOOM)
    with pytest.raises(ArchitectureError, match=r"set model\.config\.max_position_embeddings"):
        declare_architecture(model, declare)


def test_a_model_without_head_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = build_model("llama").model
    with pytest.raises(ArchitectureError, match="LlamaModel has no head; load it with AutoModelForCausalLM"):
        ModelParts(backbone)
