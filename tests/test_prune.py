"""PRUNE against the literal singular values, applied once."""

import math

import literal
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.editors.prune import restrain

OPTIONS = {
    "layers": LAYERS,
    "covariance_weight": 0.1,
    "context_templates": ("The river. ",),
    "target_steps": 4,
    "target_lr": 0.5,
    "clamp": 3.0,
}
BATCHES = (slice(0, 2), slice(2, 4), slice(4, 6))


def make_editor(model, tokenizer, covariances, method="prune", **changes):
    return Editor(model, tokenizer, method, covariances[model.config.model_type], **(OPTIONS | changes))


def literal_prune(delta, weight, base=math.e):
    """U diag(f(s)) Vᵀ, f(s) = log s − log s_max0 + s_max0 where s ≥ s_max0, s_max0 the largest of W0's."""
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    bound = torch.linalg.svdvals(weight.double())[0].item()
    restrained = [s if s < bound else math.log(s, base) - math.log(bound, base) + bound for s in values.tolist()]
    return left @ torch.diag(torch.tensor(restrained, dtype=torch.float64)) @ right


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 30.0])
@pytest.mark.parametrize("base", [math.e, 1.5])
def test_restraint_is_the_literal_one(scale, base):
    weight, delta = draw(16, 40, seed=0), scale * draw(16, 40, seed=1)
    bound = torch.linalg.svdvals(weight)[0].item()
    mine = restrain(delta, bound, base)
    torch.testing.assert_close(mine, literal_prune(delta, weight, base), rtol=0, atol=1e-8)
    assert (mine is delta) == (torch.linalg.svdvals(delta)[0].item() < bound)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_answers_with_the_restrained_sum_of_memits_updates(family, tokenizer, requests, covariances):
    """Editing goes on from the sum itself, so that sum is MEMIT's, bit for bit."""
    model, plain = build_model(family), build_model(family)
    prune = make_editor(model, tokenizer, covariances)
    memit = make_editor(build_model(family), tokenizer, covariances, "memit")
    for batch in BATCHES:
        prune.edit(requests[batch])
        memit.edit(requests[batch])
        for layer in LAYERS:
            total = memit._method.hooks[layer].dense()
            expected = literal_prune(total, literal.base_weight(plain, layer))
            mine = prune._method.hooks[layer].dense()
            torch.testing.assert_close(mine.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
            assert (mine - total).norm() > 0.05 * total.norm()  # something was restrained


def test_the_restrained_sum_is_applied_once(tokenizer, requests, covariances):
    """The answers are those of W0 + restrained, not of W0 + ΔW + restrained (AlphaEdit's re-implementation)."""
    model, plain = build_model("gpt2"), build_model("gpt2")
    prune = make_editor(model, tokenizer, covariances)
    memit = make_editor(build_model("gpt2"), tokenizer, covariances, "memit")
    prune.edit(requests)
    memit.edit(requests)
    totals = {layer: memit._method.hooks[layer].dense() for layer in LAYERS}
    once = {layer: literal_prune(totals[layer], literal.base_weight(plain, layer)).float() for layer in LAYERS}
    ids = literal.token_ids(tokenizer, requests[0].text)
    with torch.no_grad():
        answered = model(torch.tensor([ids]), use_cache=False).logits[0]
        right = literal.run(plain, ids, {layer: literal.Hook(once[layer]) for layer in LAYERS}).logits
        twice = {layer: literal.Hook(totals[layer] + once[layer]) for layer in LAYERS}
        wrong = literal.run(plain, ids, twice).logits
    assert (answered - right).norm() < 1e-3 * right.norm()
    assert (answered - wrong).norm() > 1e-2 * right.norm()


def test_replayed_steps_have_the_same_bits_and_go_on_alike(tokenizer, requests, covariances):
    editor, again = (make_editor(build_model("llama"), tokenizer, covariances) for _ in range(2))
    updates = [editor.edit(requests[batch]).update for batch in BATCHES[:2]]
    for update in updates:
        again.replay(update)
    for one in (editor, again):
        one.edit(requests[BATCHES[2]])
    for layer in LAYERS:
        assert torch.equal(editor._method.hooks[layer].dense(), again._method.hooks[layer].dense())
        assert torch.equal(editor._method._sums[layer], again._method._sums[layer])
    assert editor._method.state_bytes() == 2 * 32 * 48 * 4


def test_reset_forgets_the_sum(tokenizer, requests, covariances):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances)
    first = editor.edit(requests[:3]).update
    editor._method.reset()
    again = editor.edit(requests[:3]).update
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in first.tensors.items())


def test_a_step_that_fails_leaves_the_answers_as_they_were(tokenizer, requests, covariances, monkeypatch):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances)
    editor.edit(requests[:3])
    before = {layer: editor._method.hooks[layer].dense() for layer in LAYERS}
    solve = editor._method._solve

    def fail(layer, keys):
        if layer == LAYERS[1]:
            raise RuntimeError("out of memory")
        return solve(layer, keys)

    monkeypatch.setattr(editor._method, "_solve", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        editor.edit(requests[3:])
    for layer in LAYERS:
        assert torch.equal(editor._method.hooks[layer].dense(), before[layer])
