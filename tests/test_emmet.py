"""EMMET against its equation, and against its neighbours ROME and MEMIT."""

import literal
import literal_locate
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.hyperparameters import HyperparameterError
from coachhook.targets import TargetSettings

LAYER = 1
PREFIXES = ("The river. ", "Many years ago in the engine. ")
TARGETS = TargetSettings(3, 0.05, 0.75, 0.0625, 0.5)
OPTIONS = {
    "layers": (LAYER,),
    "context_templates": PREFIXES,
    "target_steps": TARGETS.steps,
    "target_lr": TARGETS.learning_rate,
    "covariance_weight": 3.0,
    "ridge": 0.7,
    "equality_slack": 0.2,
}


def make_editor(model, tokenizer, covariance, method="emmet", **changes):
    return Editor(model, tokenizer, method, covariance, **(OPTIONS | changes))


def literal_update(covariance, weight, ridge, slack, keys, residuals):
    """R (Kᵀ C⁻¹ K + e·I)⁻¹ Kᵀ C⁻¹ with C = weight · C0 + ridge · I; e = 0 for a batch of one."""
    preserved = torch.linalg.inv(weight * covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))
    slack = slack if keys.shape[1] > 1 else 0.0
    inner = keys.T @ preserved @ keys + slack * torch.eye(keys.shape[1], dtype=torch.float64)
    return residuals @ torch.linalg.inv(inner) @ keys.T @ preserved


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("wide", [1, 2, 9])
def test_the_solve_is_the_equation(tokenizer, covariances, ridge, wide):
    covariance = covariances["gpt2"]
    method = make_editor(build_model("gpt2"), tokenizer, covariance, ridge=ridge)._method
    keys, residuals = draw(48, wide, seed=2), draw(32, wide, seed=3)
    expected = literal_update(covariance.matrices[LAYER], 3.0, ridge, 0.2, keys, residuals)
    torch.testing.assert_close(residuals @ method._solve(LAYER, keys).T, expected, rtol=1e-8, atol=1e-8)


def test_one_request_is_met_exactly_and_several_within_the_slack(tokenizer, covariances):
    method = make_editor(build_model("gpt2"), tokenizer, covariances["gpt2"])._method
    for wide, exact in ((1, True), (4, False)):
        keys = draw(48, wide, seed=4)
        error = (method._solve(LAYER, keys).T @ keys - torch.eye(wide, dtype=torch.float64)).norm()
        assert (error < 1e-8) == exact


def test_several_are_memit_with_the_slack_times_the_weight(tokenizer, covariances):
    """Push-through: with no ridge, (Kᵀ C⁻¹ K + e·I)⁻¹ Kᵀ C⁻¹ = Kᵀ (e·C + K Kᵀ)⁻¹."""
    covariance = covariances["gpt2"]
    method = make_editor(build_model("gpt2"), tokenizer, covariance, ridge=0.0)._method
    keys, residuals = draw(48, 5, seed=5), draw(32, 5, seed=6)
    memit = literal.dense_update(covariance.matrices[LAYER], 0.2 * 3.0, None, keys, residuals)
    torch.testing.assert_close(residuals @ method._solve(LAYER, keys).T, memit, rtol=1e-8, atol=1e-8)


def test_a_batch_of_one_is_romes_update(tokenizer, requests, covariances):
    """The same target, whichever way it was found, then the same weights."""
    covariance = covariances["llama"]
    rome = make_rome(tokenizer, covariance)._method
    method = make_editor(build_model("llama"), tokenizer, covariance, ridge=0.0)._method
    key = draw(48, 1, seed=7)
    torch.testing.assert_close(method._solve(LAYER, key), rome._solve(LAYER, key), rtol=1e-8, atol=1e-8)


def make_rome(tokenizer, covariance):
    options = {name: OPTIONS[name] for name in ("layers", "context_templates")}
    return Editor(build_model("llama"), tokenizer, "rome", covariance, **options)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_steps_equal_two_literal_steps(family, tokenizer, requests, covariances):
    model, plain = build_model(family).double(), build_model(family).double()
    editor = make_editor(model, tokenizer, covariances[family])
    matrix = covariances[family].matrices[LAYER]
    deltas = literal_locate.start(plain, [LAYER])
    for batch in (requests[:5], requests[5:]):
        editor.edit(batch)
        literal_locate.step(
            plain,
            tokenizer,
            batch,
            deltas,
            PREFIXES,
            TARGETS,
            lambda layer, keys, residuals: literal_update(matrix, 3.0, 0.7, 0.2, keys, residuals),
        )
        mine = editor._method.hooks[LAYER].dense()
        assert (mine - deltas[LAYER]).norm() <= 1e-4 * deltas[LAYER].norm()
        assert deltas[LAYER].norm() > 1e-3 * literal.base_weight(plain, LAYER).norm()


def test_a_replayed_step_has_the_same_bits(tokenizer, requests, covariances):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances["gpt2"])
    again = make_editor(build_model("gpt2"), tokenizer, covariances["gpt2"])
    again.replay(editor.edit(requests[:3]).update)
    updates = [one.edit(requests[3:]).update for one in (editor, again)]
    assert all(torch.equal(tensor, updates[1].tensors[name]) for name, tensor in updates[0].tensors.items())
    assert torch.equal(editor._method.hooks[LAYER].dense(), again._method.hooks[LAYER].dense())


def test_more_than_one_layer_is_refused(tokenizer, covariances):
    with pytest.raises(HyperparameterError, match="layers"):
        make_editor(build_model("gpt2"), tokenizer, covariances["gpt2"], layers=LAYERS)
