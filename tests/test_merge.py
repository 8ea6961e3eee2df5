"""merge_and_unload: a plain model with the edits in its weights, where weights can hold them."""

import pytest
import torch
from accelerate import dispatch_model
from conftest import LAYERS, build_model
from test_all_methods import settings, trained_editor  # noqa: F401 (a fixture)
from test_devices import WHOLE, llama
from test_editors import logits, make_editor
from transformers import AutoModelForCausalLM

from coachhook import Editor, methods
from coachhook.architectures import ModelParts
from coachhook.editors import METHODS
from coachhook.errors import CoachHookError


def edited(method, model, tokenizer, requests, covariances, trained):
    covariance = covariances[model.config.model_type] if METHODS[method].load().needs_covariance else None
    editor = Editor(model, tokenizer, method, covariance, trained_editor=trained, **settings(method)[0])
    for batch in (requests[:3], requests[3:]):
        editor.edit(batch)
    return editor


def plain(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks")
    return not any(getattr(module, name) for module in model.modules() for name in hooks)


@pytest.mark.parametrize("method", methods())
def test_a_merged_model_answers_as_the_edited_one(
    method,
    tokenizer,
    requests,
    covariances,
    trained_editor,  # noqa: F811
    tmp_path,
):
    model = build_model("gpt2")
    base, names = logits(model, tokenizer, requests), list(model.state_dict())
    editor = edited(method, model, tokenizer, requests, covariances, trained_editor(method, "gpt2"))
    answers = logits(model, tokenizer, requests)
    if editor._method.effect == "scoped":
        with pytest.raises(CoachHookError, match=rf"method {method}: .* decides at which tokens") as caught:
            editor.merge_and_unload()
        assert "\n" not in str(caught.value)
        assert torch.equal(logits(model, tokenizer, requests), answers)
        return
    merged = editor.merge_and_unload()
    assert type(merged) is type(model)
    assert plain(merged)
    assert list(merged.state_dict()) == names
    given = logits(merged, tokenizer, requests)
    assert (given - answers).abs().max() <= 1e-5 * answers.abs().max()  # float32: one rounding of each weight
    assert (given - base).abs().max() > 10 * (given - answers).abs().max()
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in merged.parameters())
    assert torch.equal(logits(model, tokenizer, requests), answers)
    editor.close()
    assert torch.equal(logits(model, tokenizer, requests), base)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, tokenizer, requests), given)
    Editor(merged, tokenizer, "ft-m", layers=LAYERS).close()  # a base model like any other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_are_rounded_once(family, dtype, tokenizer, requests, covariances):
    model = build_model(family).to(dtype)
    editor = make_editor(model, tokenizer, covariances, "memit")
    editor.edit(requests)
    merged = ModelParts(editor.merge_and_unload())
    for layer in LAYERS:
        exact = ModelParts(model).base_weight(layer).double() + editor._method.hooks[layer].dense().double()
        assert torch.equal(merged.base_weight(layer), exact.to(dtype))


def test_an_editor_without_steps_merges_into_the_base_model(tokenizer, requests, covariances):
    model = build_model("llama")
    editor = make_editor(model, tokenizer, covariances, "memit")
    merged = editor.merge_and_unload()
    assert all(torch.equal(*pair) for pair in zip(merged.parameters(), model.parameters(), strict=True))
    editor.close()
    with pytest.raises(CoachHookError, match="the editor is closed"):
        editor.merge_and_unload()


def test_offloaded_weights_are_refused(tokenizer, requests, covariances, tmp_path):
    model = dispatch_model(llama(), dict.fromkeys(WHOLE, "disk"), offload_dir=tmp_path)
    editor = make_editor(model, tokenizer, covariances, "memit", target_steps=1)
    editor.edit(requests[:2])
    with pytest.raises(CoachHookError, match="method memit: weights that are offloaded cannot be copied; load"):
        editor.merge_and_unload()


def test_the_gate_decides_and_not_the_name(tokenizer, requests, covariances):
    """`coachhook` without its gate is the ablation, and merges like it."""
    model = build_model("gpt2")
    editor = make_editor(model, tokenizer, covariances, "coachhook", gate="off")
    editor.edit(requests)
    merged = editor.merge_and_unload()
    expected = logits(model, tokenizer, requests)
    assert (logits(merged, tokenizer, requests) - expected).abs().max() <= 1e-5 * expected.abs().max()
