"""How often gates fire, against the gate's own equation, one text and one layer at a time."""

import pytest
import torch
from conftest import LAYERS, TEXT, build_model
from test_editors import make_editor

from coachhook.architectures import ModelParts
from coachhook.gate_firing import SampleError, gate_firing


def literal_swaps(editor, text):
    """Per layer, whether z ≥ α at each token, from what each rewrite module was given behind the layers below."""
    given, parts = {}, ModelParts(editor.model)
    handles = [
        parts.rewrite_module(layer).register_forward_pre_hook(
            lambda module, args, layer=layer: given.update({layer: args[0].detach()})
        )
        for layer in LAYERS
    ]
    with torch.no_grad():
        editor.model(torch.tensor([editor.tokenizer(text)["input_ids"]]), use_cache=False)
    for handle in handles:
        handle.remove()
    found = {}
    for hook in editor._method.hooks:
        moved = [(hook.dense() @ key).norm().item() for key in given[hook.layer][0]]
        mean = sum(moved) / len(moved)
        deviation = (sum((value - mean) ** 2 for value in moved) / (len(moved) - 1)) ** 0.5
        found[hook.layer] = [(value - mean) / deviation >= hook.gate.alpha for value in moved]
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rates_are_those_of_the_equation(family, tokenizer, covariances, requests):
    editor = make_editor(build_model(family), tokenizer, covariances, "coachhook", alpha=1.4, target_lr=0.5)
    assert [layer.fired_tokens for layer in gate_firing(editor, TEXT)] == [0, 0]
    editor.edit(requests)
    texts = [*TEXT, "Paris.", ""]
    literal = [literal_swaps(editor, text) for text in texts[:-1]]
    for layer in gate_firing(editor, texts):
        wanted = [swaps[layer.layer] for swaps in literal]
        assert layer.texts == len(texts) - 1
        assert layer.tokens == sum(map(len, wanted))
        assert layer.fired_tokens == sum(map(sum, wanted)) > 0
        assert layer.fired_texts == sum(map(any, wanted))
        assert layer.rate == layer.fired_tokens / layer.tokens < 1


def test_without_a_gate_every_token_is_answered_and_disabled_none(tokenizer, covariances, requests):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "memit")
    editor.edit(requests[:2])
    assert [layer.rate for layer in gate_firing(editor, TEXT)] == [1, 1]
    with editor.disabled():
        assert [layer.rate for layer in gate_firing(editor, TEXT)] == [0, 0]


def test_the_leverage_gate_fires_alike_with_and_without_a_cache(tokenizer, covariances, requests):
    options = {"false_positive_rate": 0.1, "target_lr": 0.5}
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "coachhook-leverage", **options)
    editor.edit(requests[:3])
    ids = torch.tensor([tokenizer(TEXT[0])["input_ids"]])
    with editor.recorded_swaps() as swaps, torch.no_grad():
        past = editor.model(ids[:, :5], use_cache=True).past_key_values
        for token in ids[0, 5:]:
            past = editor.model(token.reshape(1, 1), past_key_values=past, use_cache=True).past_key_values
    fired = {layer: torch.cat(calls, 1).sum().item() for layer, calls in swaps.items()}
    assert fired == {layer.layer: layer.fired_tokens for layer in gate_firing(editor, TEXT[:1])}
    assert 0 < sum(fired.values()) < ids.shape[1] * len(LAYERS)


def test_what_a_gate_does_while_generating_is_recorded_call_by_call(tokenizer, covariances, requests):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "memit")
    editor.edit(requests[:2])
    ids = torch.tensor([tokenizer("The capital of France")["input_ids"]])
    with editor.recorded_swaps() as swaps:
        editor.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3)
    assert [list(mask.shape) for mask in swaps[LAYERS[0]]] == [[1, ids.shape[1]], [1, 1], [1, 1]]
    editor.model(ids)
    assert len(swaps[LAYERS[0]]) == 3


def test_methods_without_hook_layers_have_none_and_a_sample_needs_text(tokenizer, covariances):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "grace", layers=LAYERS[:1])
    assert gate_firing(editor, TEXT) == []
    with pytest.raises(SampleError, match="texts: there is no text"):
        gate_firing(editor, ["", ""])


def test_long_texts_are_read_from_their_beginning(tokenizer, covariances, requests):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "memit")
    editor.edit(requests[:2])
    assert gate_firing(editor, [" ".join(TEXT * 9)])[0].tokens == 64
