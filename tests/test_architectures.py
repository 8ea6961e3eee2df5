import pytest
import torch
from conftest import build_model
from transformers import AutoConfig, AutoModelForCausalLM

from coachhook.architectures import ARCHITECTURES, ArchitectureError, ModelParts, weight_matrix
from coachhook.tracing import block_inputs, rewrite_inputs

SIZES = {
    "gpt2": {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_inner": 24, "n_positions": 32},
    "gptj": {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_inner": 24, "n_positions": 32, "rotary_dim": 4},
}
COMMON = {
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
IDS = torch.tensor([[5, 9, 3, 7, 2]])


@pytest.fixture(params=ARCHITECTURES)
def tiny(request):
    sizes = SIZES.get(request.param, COMMON)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, vocab_size=40, **ends, **sizes)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def test_every_family_keeps_its_parts_where_we_say(tiny):
    parts = ModelParts(tiny)
    assert len(parts.blocks) == 3
    assert parts.context_length == 32
    assert parts.width(2) == 24
    assert weight_matrix(parts.rewrite_module(1)).shape == (16, 24)
    with rewrite_inputs(parts, [1], stop=False) as keys, block_inputs(parts, [0, 2], stop=False) as calls:
        logits = tiny(IDS, use_cache=False).logits
    assert keys[1].shape == (1, 5, 24)
    last = calls[2].run(parts.blocks[2], calls[2].hidden)
    torch.testing.assert_close(parts.head(parts.final_norm(last)), logits, rtol=1e-5, atol=1e-6)
    normed = parts.backbone(IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(parts.head(normed), logits, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_weight_matrix_maps_keys_to_the_modules_output(tiny):
    module = ModelParts(tiny).rewrite_module(0)
    keys = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    bias = 0 if getattr(module, "bias", None) is None else module.bias
    torch.testing.assert_close(keys @ weight_matrix(module).T + bias, module(keys), rtol=1e-5, atol=1e-6)


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
        torch.testing.assert_close(given[row, :count], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [-1, 5])
def test_a_layer_that_does_not_exist_is_named(layer):
    with pytest.raises(ArchitectureError, match=f"layers: {layer} does not exist.* 0 to 4"):
        ModelParts(build_model("gpt2")).rewrite_module(layer)


def test_an_unknown_family_is_refused_with_the_known_ones():
    model = build_model("gpt2")
    model.config.model_type = "t5"
    with pytest.raises(ArchitectureError, match=r"'t5' is unknown: known are gemma, gpt2.*ARCHITECTURES"):
        ModelParts(model)
