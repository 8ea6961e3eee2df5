import literal
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook.architectures import ModelParts
from coachhook.gates import PaperGate
from coachhook.hooks import HookLayers
from coachhook.keys import KeyPrompts, LayerSweep, encode_edit
from coachhook.tokens import pad

PREFIXES = ("The river. ", "Many years ago in the engine. ")
SWEPT = (1, 2, 4)  # with a gap: blocks between edited layers are run too


def updates(model, layers, seed=0):
    """Two updates per layer: what an earlier step left, and what this one writes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {layer: literal.base_weight(model, layer).shape for layer in layers}
    return {
        layer: [0.03 * torch.randn(shape, generator=generator) for _ in range(2)] for layer, shape in shapes.items()
    }


@pytest.mark.parametrize("prefixes", [(), PREFIXES])
def test_the_sweep_sees_what_whole_model_forwards_see_while_layers_are_edited(model, tokenizer, requests, prefixes):
    model = model.double()
    alpha, written = 1.3, updates(model, SWEPT)
    hooks = HookLayers(ModelParts(model), {layer: PaperGate(alpha) for layer in SWEPT})
    for hook in hooks:
        hook.add(written[hook.layer][0])
    given = {}
    with torch.no_grad(), hooks.modes("temporary"):
        prompts = KeyPrompts.encode(tokenizer, requests, prefixes, model.device)
        sweep = LayerSweep(ModelParts(model), hooks, prompts, SWEPT)
        for layer in SWEPT:
            given[layer] = sweep.keys(layer), sweep.hidden(layer)
            hooks[layer].add(written[layer][1])
            hooks[layer].mode = "validated"
    hooks.close()

    copies = {layer: literal.Hook(written[layer][0].double()) for layer in SWEPT}
    unedited = [literal.find_key(model, tokenizer, r, SWEPT[-1], prefixes) for r in requests]
    for layer in SWEPT:
        keys = torch.stack([literal.find_key(model, tokenizer, r, layer, prefixes, copies) for r in requests])
        hidden = torch.stack([literal.find_hidden(model, tokenizer, r, SWEPT[-1], copies) for r in requests])
        assert (given[layer][0] - keys).norm() <= 1e-5 * keys.norm()
        assert (given[layer][1] - hidden).norm() <= 1e-5 * hidden.norm()
        copies[layer] = literal.Hook(sum(written[layer]).double(), alpha)
    assert (keys - torch.stack(unedited)).norm() > 1e-2 * keys.norm()


def test_one_request_alone_gives_its_row(model, tokenizer, requests):
    parts = ModelParts(model.double())
    rows = []
    for group in ([requests[2]], requests):
        hooks = HookLayers(parts, {layer: PaperGate(2.2) for layer in LAYERS})
        with torch.no_grad():
            prompts = KeyPrompts.encode(tokenizer, group, PREFIXES, model.device)
            sweep = LayerSweep(parts, hooks, prompts, LAYERS)
            rows.append([(sweep.keys(layer), sweep.hidden(layer)) for layer in LAYERS])
        hooks.close()
    for (keys, hidden), (all_keys, all_hidden) in zip(*rows, strict=True):
        torch.testing.assert_close(keys[0], all_keys[2], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(hidden[0], all_hidden[2], rtol=1e-5, atol=1e-6)


def test_the_plain_prompt_weighs_one_half():
    batch = pad([[1]] * 6, 0)
    prompts = KeyPrompts(batch, torch.zeros(6, dtype=torch.long), requests=2, prefixes=2)
    rows = torch.tensor([[1.0], [10.0], [2.0], [4.0], [20.0], [60.0]])
    assert prompts.combine(rows).tolist() == [[2.0], [25.0]]
    alone = KeyPrompts(pad([[1]], 0), torch.zeros(1, dtype=torch.long), requests=1, prefixes=0)
    assert alone.combine(rows[:1]).tolist() == [[1.0]]


def test_the_bare_subject_weighs_a_third_where_the_prompt_begins_otherwise(tokenizer, requests):
    rows = torch.tensor([[1.0], [10.0], [2.0], [4.0], [20.0], [60.0], [6.0], [30.0]])
    batch, last = pad([[1]] * 8, 0), torch.zeros(8, dtype=torch.long)
    for bare, keys in (([True, True], [[10 / 3], [80 / 3]]), ([True, False], [[10 / 3], [25.0]])):
        prompts = KeyPrompts(batch, last, requests=2, prefixes=2, bare=torch.tensor(bare))
        torch.testing.assert_close(prompts.combine(rows), torch.tensor(keys))
        assert prompts.plain(rows).tolist() == [[1.0], [10.0]]
    begins = [request.text.startswith(request.subject) for request in requests]
    assert set(begins) == {True, False}
    assert KeyPrompts.encode(tokenizer, requests, PREFIXES, "cpu", bare=True).bare.tolist() == [not b for b in begins]
    assert KeyPrompts.encode(tokenizer, requests, PREFIXES, "cpu").bare is None
    model = build_model("gpt2")
    encoded = KeyPrompts.encode(tokenizer, requests, PREFIXES, model.device, bare=True)
    assert len(encoded.batch.ids) == 4 * len(requests)
    for request, ids, real, last in zip(
        requests, encoded.batch.ids[-6:], encoded.batch.real[-6:], encoded.subject_last[-6:], strict=True
    ):
        assert ids[real].tolist() == tokenizer(f"{request.subject} is a")["input_ids"]
        assert tokenizer.decode(ids[: last + 1]) == request.subject


def test_the_subject_is_found_behind_a_prefix_that_names_it_too(tokenizer, requests):
    request = requests[3]  # "The capital of France is"
    for prefix in ("", *PREFIXES, "France and France. "):
        encoded = encode_edit(tokenizer, request, prefix, request.target_new)
        assert encoded.subject_last == literal.subject_last(tokenizer, request, prefix)
        assert encoded.ids[encoded.answer_start :] == tuple(tokenizer(" London")["input_ids"])


def test_a_sweep_leaves_no_hooks_behind(tokenizer, requests):
    model = build_model("gpt2")
    hooks = HookLayers(ModelParts(model), {layer: PaperGate(2.2) for layer in LAYERS})
    with torch.no_grad():
        prompts = KeyPrompts.encode(tokenizer, requests, (), model.device)
        LayerSweep(ModelParts(model), hooks, prompts, LAYERS).keys(LAYERS[0])
    hooks.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
