"""AlphaEdit against both published forms of its equation, and the keys that it remembers."""

import literal
import literal_locate
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.solver import CovarianceError, NullSpaceLeastSquares
from coachhook.targets import TargetSettings

PREFIXES = ("The river. ", "Many years ago in the engine. ")
TARGETS = TargetSettings(3, 0.05, 0.75, 0.0625, 0.5)
RIDGE = 0.5


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_covariance(width=40, seed=0):
    """A C0 whose eigenvalues run from 1e-4 to 10."""
    basis = torch.linalg.qr(draw(width, width, seed=seed)).Q
    return basis @ torch.diag(torch.logspace(-4, 1, width, dtype=torch.float64)) @ basis.T


def projector(covariance, threshold):
    """P = U_s U_sᵀ, U_s the singular vectors of C0 below the threshold."""
    left, values, _ = torch.linalg.svd(covariance)
    null = left[:, values < threshold]
    return null @ null.T


def released_form(covariance, threshold, ridge, past, keys, residuals):
    """Δᵀ = solve(P (K Kᵀ + C_p) + L2·I, P K Rᵀ), dense."""
    project = projector(covariance, threshold)
    system = project @ (keys @ keys.T + past) + ridge * torch.eye(len(covariance), dtype=torch.float64)
    return torch.linalg.solve(system, project @ keys @ residuals.T).T


def paper_form(covariance, threshold, past, keys, residuals):
    """Δ = R Kᵀ P (C_p P + K Kᵀ P + I)⁻¹, dense."""
    project = projector(covariance, threshold)
    system = past @ project + keys @ keys.T @ project + torch.eye(len(covariance), dtype=torch.float64)
    return residuals @ keys.T @ project @ torch.linalg.inv(system)


@pytest.mark.parametrize("threshold", [3e-4, 2e-2, 2.0])  # few, half and most eigenvalues
def test_the_solve_is_both_published_forms(threshold):
    covariance = make_covariance()
    for ridge, form in ((10.0, released_form), (0.3, released_form), (1.0, paper_form)):
        solver = NullSpaceLeastSquares(covariance, threshold, ridge)
        past = torch.zeros(40, 40, dtype=torch.float64)
        for seed, wide in ((1, 4), (2, 1), (3, 7)):
            keys, residuals = draw(40, wide, seed=seed), draw(8, wide, seed=seed + 10)
            arguments = (covariance, threshold, *([ridge] if form is released_form else []), past, keys, residuals)
            torch.testing.assert_close(residuals @ solver.gain(keys).T, form(*arguments), rtol=1e-8, atol=1e-8)
            solver.absorb(keys)
            past = past + keys @ keys.T
        solver.forget()
        assert solver.absorbed == 0


def test_keys_outside_the_null_space_are_left_alone():
    covariance = make_covariance()
    solver = NullSpaceLeastSquares(covariance, 2e-2, 1.0)
    gain = solver.gain(draw(40, 5, seed=1))
    outside = torch.eye(40, dtype=torch.float64) - projector(covariance, 2e-2)
    assert (outside @ gain).norm() < 1e-10 * gain.norm()


@pytest.mark.parametrize(("threshold", "says"), [(1e-5, "none of them"), (100.0, "all of them")])
def test_a_threshold_that_parts_nothing_is_refused(tokenizer, threshold, says):
    covariance = {layer: make_covariance(48) for layer in LAYERS}
    with pytest.raises(CovarianceError, match=rf"nullspace_threshold: .*{says}.*layer 1"):
        Editor(build_model("gpt2"), tokenizer, "alphaedit", covariance, nullspace_threshold=threshold)


def make_editor(family, tokenizer, covariances, double=False):
    model = build_model(family).double() if double else build_model(family)
    return Editor(
        model,
        tokenizer,
        "alphaedit",
        covariances[family],
        layers=LAYERS,
        context_templates=PREFIXES,
        target_steps=TARGETS.steps,
        target_lr=TARGETS.learning_rate,
        nullspace_threshold=middle(covariances[family]),
        ridge=RIDGE,
    )


def middle(covariance):
    """A threshold with about a third of the eigenvalues of either layer above it."""
    return min(torch.linalg.eigvalsh(covariance.matrices[layer]).quantile(2 / 3).item() for layer in LAYERS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_three_steps_equal_literal_steps_and_remember_the_keys_after_all_layers(
    family, tokenizer, requests, covariances
):
    editor = make_editor(family, tokenizer, covariances, double=True)
    plain = build_model(family).double()
    matrices, threshold = covariances[family].matrices, middle(covariances[family])
    deltas = literal_locate.start(plain, LAYERS)
    past = {layer: torch.zeros_like(matrices[layer]) for layer in LAYERS}
    for batch in (requests[:2], requests[2:4], requests[4:]):
        update = editor.edit(batch).update
        literal_locate.step(
            plain,
            tokenizer,
            batch,
            deltas,
            PREFIXES,
            TARGETS,
            lambda layer, keys, residuals: released_form(
                matrices[layer], threshold, RIDGE, past[layer], keys, residuals
            ),
        )
        for layer, delta in deltas.items():
            mine = editor._method.hooks[layer].dense()
            assert (mine - delta).norm() <= 1e-4 * delta.norm()
            assert delta.norm() > 1e-3 * literal.base_weight(plain, layer).norm()
            keys = literal_locate.keys_of(plain, tokenizer, batch, layer, PREFIXES, deltas)
            past[layer] = past[layer] + keys @ keys.T
            kept = update.tensors[f"keys.{layer}"].double()
            assert (kept - keys).norm() <= 1e-4 * keys.norm()


def test_a_replayed_step_has_the_same_bits_and_is_remembered(tokenizer, requests, covariances):
    editor, again, other = (make_editor("gpt2", tokenizer, covariances) for _ in range(3))
    update = editor.edit(requests[:3]).update
    again.replay(update)
    mine, replayed, fresh = (one.edit(requests[3:]).update.tensors for one in (editor, again, other))
    for layer in LAYERS:
        assert torch.equal(editor._method.hooks[layer].dense(), again._method.hooks[layer].dense())
        assert torch.equal(mine[f"right.{layer}"], replayed[f"right.{layer}"])
        past = update.tensors[f"keys.{layer}"]
        assert (mine[f"right.{layer}"].T @ past).norm() < 0.9 * (fresh[f"right.{layer}"].T @ past).norm()
