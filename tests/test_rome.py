"""ROME against its equation, one request at a time."""

import literal
import literal_locate
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.editors.rome import Rome
from coachhook.hyperparameters import HyperparameterError
from coachhook.solver import RecursiveLeastSquares
from coachhook.targets import TargetSettings

LAYER = 2
PREFIXES = ("The river. ", "Many years ago in the engine. ")
CLAMP, DECAY = 0.3, 0.5
OPTIONS = {
    "layers": (LAYER,),
    "context_templates": PREFIXES,
    "target_steps": 4,
    "target_lr": 0.5,
    "clamp": CLAMP,
    "weight_decay": DECAY,
}


def make_editor(model, tokenizer, covariances, **changes):
    return Editor(model, tokenizer, "rome", covariances[model.config.model_type], **(OPTIONS | changes))


def rank_one(weight, covariance, key, value):
    """ΔW = (v − W k) (C0⁻¹k)ᵀ / ((C0⁻¹k)ᵀ k), all in float64."""
    whitened = torch.linalg.inv(covariance) @ key
    return torch.outer(value - weight @ key, whitened) / (whitened @ key)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    samples = draw(48, 200)
    return draw(8, 48), samples @ samples.T / 200, draw(48), draw(8)


def test_the_solve_is_the_rank_one_equation(problem):
    weight, covariance, key, value = problem
    rome = Rome.__new__(Rome)
    rome._preserved = RecursiveLeastSquares(covariance, 1.0)
    change = torch.outer(value - weight @ key, rome._solve(LAYER, key[:, None])[:, 0])
    expected = rank_one(weight, covariance, key, value)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close((weight + change) @ key, value, rtol=0, atol=1e-8)


def literal_rome(model, tokenizer, request, covariance, delta):
    """One request: v is what the rewrite module must answer to k, so that its output moves by δ."""
    hooks = {LAYER: literal.Hook(delta)}
    place = literal.subject_last(tokenizer, request)
    seen = literal.run(model, literal.token_ids(tokenizer, request.text), hooks)
    weight = literal.base_weight(model, LAYER).double() + delta
    bias = getattr(literal.rewrite_module(model, LAYER), "bias", None)
    output = weight @ seen.keys[LAYER][place].double() + (0 if bias is None else bias.detach().double())
    scale = (output.norm() / seen.hidden[LAYER][place].norm()).item()
    settings = TargetSettings(4, 0.5, CLAMP * scale, 0.0625, DECAY / scale**2)  # all measured by ‖v‖
    target, hidden, _ = literal.find_target(model, tokenizer, request, LAYER, PREFIXES, settings, hooks)
    key = literal.find_key(model, tokenizer, request, LAYER, PREFIXES, hooks).double()
    assert (target - hidden).norm() <= CLAMP * output.norm() * (1 + 1e-9)
    return delta + rank_one(weight, covariance, key, weight @ key + (target - hidden).double())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_batches_are_literal_steps_one_request_at_a_time(family, tokenizer, requests, covariances):
    model, plain = build_model(family).double(), build_model(family).double()
    editor = make_editor(model, tokenizer, covariances)
    covariance = covariances[family].matrices[LAYER]
    delta = literal_locate.start(plain, [LAYER])[LAYER]
    for batch in (requests[:3], requests[3:5]):
        editor.edit(batch)
        for request in batch:
            delta = literal_rome(plain, tokenizer, request, covariance, delta)
        mine = editor._method.hooks[LAYER].dense()
        assert (mine - delta).norm() <= 1e-4 * delta.norm()
        assert delta.norm() > 1e-3 * literal.base_weight(plain, LAYER).norm()


def test_the_rewrite_module_answers_the_value_and_the_block_the_target(tokenizer, requests, covariances):
    """What δ adds to the rewrite module's output, it adds to the block's: z − h and v − W k are the same vector."""
    model, plain = build_model("gptj"), build_model("gptj")
    editor = make_editor(model, tokenizer, covariances, context_templates=())
    request = requests[0]
    update = editor.edit([request]).update
    added = update.tensors[f"left.{LAYER}"][:, 0]
    place = literal.subject_last(tokenizer, request)
    ids = literal.token_ids(tokenizer, request.text)
    before = literal.run(plain, ids)
    after = literal.run(plain, ids, {LAYER: literal.Hook(editor._method.hooks[LAYER].dense())})
    key = before.keys[LAYER][place]
    torch.testing.assert_close(editor._method.hooks[LAYER].dense() @ key, added, rtol=1e-3, atol=1e-4)
    moved = after.hidden[LAYER][place] - before.hidden[LAYER][place]
    torch.testing.assert_close(moved, added, rtol=1e-3, atol=1e-4)


def test_requests_of_one_batch_see_each_other(tokenizer, requests, covariances):
    together = make_editor(build_model("gpt2"), tokenizer, covariances)
    alone = make_editor(build_model("gpt2"), tokenizer, covariances)
    together.edit(requests[:4])
    for request in requests[:4]:
        alone.edit([request])
    assert torch.equal(together._method.hooks[LAYER].dense(), alone._method.hooks[LAYER].dense())


def test_a_replayed_batch_has_the_same_bits_and_goes_on_alike(tokenizer, requests, covariances):
    editor = make_editor(build_model("llama"), tokenizer, covariances)
    again = make_editor(build_model("llama"), tokenizer, covariances)
    update = editor.edit(requests[:4]).update
    assert set(update.tensors) == {f"left.{LAYER}", f"right.{LAYER}"}
    assert update.tensors[f"right.{LAYER}"].shape == (48, 4)
    again.replay(update)
    for request in requests[4:]:
        assert torch.equal(editor._method.hooks[LAYER].dense(), again._method.hooks[LAYER].dense())
        editor.edit([request])
        again.edit([request])
    assert torch.equal(editor._method.hooks[LAYER].dense(), again._method.hooks[LAYER].dense())


def test_more_than_one_layer_is_refused(tokenizer, covariances):
    with pytest.raises(HyperparameterError, match="layers"):
        make_editor(build_model("gpt2"), tokenizer, covariances, layers=LAYERS)
