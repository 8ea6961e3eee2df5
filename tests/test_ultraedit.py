"""UltraEdit, held against its equations written out token by token on a second model whose weights are changed."""

import math

import literal
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.editors import ultraedit
from coachhook.editors.ultraedit import RunningMoments, ridge_update
from coachhook.journal import read_step, write_step

RATE = 2e-4
FAMILIES = ("gpt2", "llama")
EPSILON = 2**-23


def literal_ridge(keys, values):
    """Δ of Δᵀ = (HᵀH + I)⁻¹ Hᵀ V, the inverse written out."""
    gram = sum(torch.outer(h, h) for h in keys) + torch.eye(keys.shape[1], dtype=keys.dtype)
    return (torch.linalg.inv(gram) @ sum(torch.outer(h, v) for h, v in zip(keys, values, strict=True))).T


def literal_tokens(model, tokenizer, request, layers):
    """(h, g) per layer and target token, at the token before it; one prompt at a time, loss summed over its tokens."""
    prompt = tokenizer(request.text)["input_ids"]
    target = tokenizer(" " + request.target_new)["input_ids"]
    keys, outputs, handles = {}, {}, []
    for layer in layers:

        def record(module, args, output, layer=layer):
            keys[layer], outputs[layer] = args[0][0], output
            output.retain_grad()

        handles.append(literal.rewrite_module(model, layer).register_forward_hook(record))
    scores = model(torch.tensor([prompt + target]), use_cache=False).logits[0].log_softmax(-1)
    places = [len(prompt) - 1 + i for i in range(len(target))]
    (-sum(scores[place, token] for place, token in zip(places, target, strict=True))).backward()
    for handle in handles:
        handle.remove()
    return {layer: [(keys[layer][p].detach(), outputs[layer].grad[0, p]) for p in places] for layer in layers}


def literal_step(model, tokenizer, batch, history):
    """One turn, which writes into the weights of `model`; `history`: all tokens' [h; g] so far, per layer."""
    found = [literal_tokens(model, tokenizer, request, LAYERS) for request in batch]
    for layer in LAYERS:
        pairs = [pair for tokens in found for pair in tokens[layer]]
        history[layer] += [torch.cat(pair) for pair in pairs]
        everything = torch.stack(history[layer])
        mean, deviation = everything.mean(0), everything.std(0)
        width = len(pairs[0][0])
        values = []
        for h, g in pairs:
            standard = (torch.cat([h, g]) - mean) / (deviation + EPSILON)
            values.append(-RATE * sum(standard[:width] ** 2) * standard[width:])
        change = literal_ridge(torch.stack([h for h, _ in pairs]), torch.stack(values))
        literal.base_weight(model, layer).add_(change)
    return history


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [(4, 2), (2, 1, 3), (6, 6, 6, 6)])
def test_turns_of_any_size_equal_literal_ones(family, tokenizer, requests, sizes):
    """To 1e-3 of the change: the editor keeps it in float32, the literal turns in float64."""
    model, plain = build_model(family).double(), build_model(family).double()
    editor = Editor(model, tokenizer, "ultraedit", layers=LAYERS, learning_rate=RATE)
    start = {layer: literal.base_weight(plain, layer).clone() for layer in LAYERS}
    history = {layer: [] for layer in LAYERS}
    stream = iter(requests * 4)
    for size in sizes:
        batch = [next(stream) for _ in range(size)]
        editor.edit(batch)
        literal_step(plain, tokenizer, batch, history)
        for hook in editor._method.hooks:
            expected = literal.base_weight(plain, hook.layer) - start[hook.layer]
            assert (hook.dense() - expected).norm() <= 1e-3 * expected.norm()
    assert all(hook.dense().norm() > 1e-3 * start[hook.layer].norm() for hook in editor._method.hooks)


@pytest.mark.parametrize(("tokens", "parts"), [(1, 2), (7, 2), (12, 1), (20, 1), (31, 1), (32, 1), (60, 1)])
def test_the_smaller_system_gives_the_ridge_solution(tokens, parts):
    """m = 32, d = 16: two factors are smaller than Δ for fewer than 32·16/48 = 10.7 tokens."""
    generator = torch.Generator().manual_seed(tokens)
    keys = 3 * torch.randn(tokens, 32, generator=generator, dtype=torch.float64)
    values = torch.randn(tokens, 16, generator=generator, dtype=torch.float64)
    factors = ridge_update(keys, values)
    assert len(factors) == parts
    assert sum(map(torch.numel, factors)) <= 32 * 16
    product = factors[0] if parts == 1 else factors[0] @ factors[1]
    expected = literal_ridge(keys, values)
    assert (product - expected).abs().max() <= 1e-8 * expected.abs().max()


def test_running_moments_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    rows = 100 + torch.randn(40, 5, generator=generator)
    moments, seen = RunningMoments.empty(5, torch.device("cpu")), 0
    for size in (1, 1, 30, 8):
        moments = moments.including(rows[seen : seen + size])
        seen += size
        everything = rows[:seen].double()
        assert moments.count == seen
        torch.testing.assert_close(moments.mean, everything.mean(0), rtol=1e-12, atol=0)
        if seen == 1:
            assert not moments.standardise(rows[:3]).isnan().any()
            continue
        expected = (rows[:3].double() - everything.mean(0)) / (everything.std(0) + EPSILON)
        torch.testing.assert_close(moments.standardise(rows[:3]), expected, rtol=1e-9, atol=1e-12)


def test_no_token_depends_on_the_requests_beside_it(tokenizer, requests, monkeypatch):
    updates = []
    for limit in (4096, 1, 30):  # tokens per backward pass: all requests at once, one by one, some
        monkeypatch.setattr(ultraedit, "_MAX_TOKENS", limit)
        editor = Editor(build_model("gpt2"), tokenizer, "ultraedit", layers=LAYERS, learning_rate=RATE)
        editor.edit(requests)
        updates.append(torch.cat([hook.dense() for hook in editor._method.hooks]))
    for other in updates[1:]:
        assert (other - updates[0]).norm() <= 1e-4 * updates[0].norm()


def test_a_first_batch_of_one_token_changes_nothing_and_later_ones_do(tokenizer, requests):
    editor = Editor(build_model("gpt2"), tokenizer, "ultraedit", layers=LAYERS, learning_rate=RATE)
    single = [r for r in requests if len(tokenizer(" " + r.target_new)["input_ids"]) == 1]
    editor.edit(single[:1])
    assert all(hook.dense().abs().max() == 0 for hook in editor._method.hooks)
    editor.edit(single[1:2])
    assert all(math.isfinite(hook.dense().norm()) and hook.dense().norm() > 0 for hook in editor._method.hooks)


def test_a_turn_of_one_relation_moves_its_targets_up(tokenizer, requests):
    model = build_model("llama")
    editor = Editor(model, tokenizer, "ultraedit", layers=LAYERS, learning_rate=5e-4)

    def likelihood():
        total = 0
        for request in requests:
            prompt = tokenizer(request.text)["input_ids"]
            target = tokenizer(" " + request.target_new)["input_ids"]
            with torch.no_grad():
                scores = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
            total += sum(scores[len(prompt) - 1 + i, token].item() for i, token in enumerate(target))
        return total

    before = likelihood()
    editor.edit(requests)
    assert likelihood() > before + 0.5


def test_replay_restores_the_statistics_too(tokenizer, requests, tmp_path):
    options = {"layers": LAYERS, "learning_rate": RATE}
    editor = Editor(build_model("gpt2"), tokenizer, "ultraedit", **options)
    again = Editor(build_model("gpt2"), tokenizer, "ultraedit", **options)
    updates = [editor.edit(batch).update for batch in (requests[:3], requests[3:5])]
    for step, update in enumerate(updates, 1):
        write_step(tmp_path, step, update)
        again.replay(read_step(tmp_path, step))
    updates.append(editor.edit(requests[5:]).update)
    resumed = again.edit(requests[5:]).update
    for name, tensor in updates[2].tensors.items():
        assert torch.equal(resumed.tensors[name], tensor)
    editor._method.reset()
    afresh = editor.edit(requests[:3]).update
    assert all(torch.equal(afresh.tensors[name], tensor) for name, tensor in updates[0].tensors.items())
    assert resumed.info["tokens"] > updates[0].info["tokens"]


def test_weights_that_need_no_gradient_can_be_edited_and_no_hook_stays(tokenizer, requests):
    model = build_model("gpt2").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    editor = Editor(model, tokenizer, "ultraedit", layers=LAYERS, learning_rate=RATE)
    editor.edit(requests)
    assert all(hook.dense().norm() > 0 for hook in editor._method.hooks)
    editor.close()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
