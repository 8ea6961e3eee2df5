"""What W_h answers for instead of a token's own key, against the same in dense algebra."""

import literal_leverage
import pytest
import torch
from conftest import LAYERS, build_model
from test_editors import make_editor
from test_leverage import WEIGHT, ordinary_keys, problem

from coachhook.key_retrieval import KeyRetrieval
from coachhook.leverage import LeverageGate, prior_sketch
from coachhook.low_rank import LowRank
from coachhook.solver import FactoredLeastSquares

METHOD = "coachhook-leverage"


def written(covariance, batches, sharpness):
    """The gate once all batches are written with random residuals, and ΔW."""
    solver, generator = FactoredLeastSquares(covariance, WEIGHT), torch.Generator().manual_seed(2)
    gate, delta = LeverageGate(retrieval=KeyRetrieval(sharpness)), torch.zeros(7, len(covariance)).double()
    sketch = prior_sketch(solver, len(covariance), 10_000, 0)
    for keys in batches:
        residuals = torch.randn(7, keys.shape[1], generator=generator).double()
        right, root = solver.factor(keys)
        left = torch.linalg.solve_triangular(root, residuals.T, upper=False).T
        rows = torch.cat([solver.known(keys).T, root], 1).float()
        factors = (gate.factors or LowRank()).grown(left, right)
        gate = gate.grown(factors, sketch, rows)
        solver.absorb_factor(right)
        delta += left @ right.T
    return gate, delta


@pytest.mark.parametrize("sharpness", [0.5, 5.0, 50.0])
def test_it_answers_as_dense_algebra_does(sharpness):
    covariance, batches = problem()
    gate, delta = written(covariance, batches, sharpness)
    prior, past = WEIGHT * covariance, torch.cat(batches, 1)
    near = (past + 0.3 * past.roll(1, 1)).T.float()
    keys = torch.cat([near, ordinary_keys(9, len(covariance), 3)])[None]
    change, swap = gate.answer(None, keys)
    assert torch.equal(swap, gate.swap(None, None, keys))
    expected = [delta @ literal_leverage.retrieved(prior, past, key, sharpness) for key in keys[0]]
    torch.testing.assert_close(change[0], torch.stack(expected).float(), rtol=1e-4, atol=1e-4)


def test_with_sharpness_without_end_it_is_the_nearest_edited_key():
    covariance, batches = problem()
    gate, delta = written(covariance, batches, 1e4)
    past = torch.cat(batches, 1)
    answers = gate.answer(None, 0.7 * past.T.float()[None] + 0.01 * ordinary_keys(past.shape[1], len(past), 1))[0][0]
    torch.testing.assert_close(answers, (delta @ past).T.float(), rtol=1e-3, atol=1e-3)


def test_what_it_was_stays_when_it_grows_and_a_beginning_is_what_was_there_then():
    covariance, batches = problem()
    keys = ordinary_keys(5, len(covariance), 3)[None]
    stopped = written(covariance, batches[:2], 5.0)[0]
    before = stopped.answer(None, keys)[0]
    whole = written(covariance, batches, 5.0)[0]
    assert torch.equal(stopped.answer(None, keys)[0], before)
    assert not torch.allclose(whole.answer(None, keys)[0], before, rtol=1e-3)
    assert whole.retrieval.keys == sum(batch.shape[1] for batch in batches)
    count = whole.retrieval.keys
    held = (*whole.retrieval._matrices, *whole.retrieval._rows)
    assert whole.retrieval.nbytes == sum(part.nbytes for part in held) > 8 * count**2
    assert torch.equal(
        whole.retrieval.sharpened(5.0).retrieved(keys[0] @ whole.factors.right, whole.prior(keys[0])),
        whole.retrieval.retrieved(keys[0] @ whole.factors.right, whole.prior(keys[0])),
    )


def test_each_token_is_answered_for_by_itself():
    covariance, batches = problem()
    gate = written(covariance, batches, 5.0)[0]
    keys = ordinary_keys(24, len(covariance), 4).view(2, 12, -1)
    whole = gate.answer(None, keys)[0]
    for row in range(2):
        for token in range(12):
            alone = gate.answer(None, keys[row : row + 1, token : token + 1])[0]
            torch.testing.assert_close(alone[0, 0], whole[row, token], rtol=1e-5, atol=1e-6)


def test_without_it_w_h_answers_for_the_tokens_own_key(tokenizer, requests, covariances):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, METHOD, retrieval_sharpness=None)
    editor.edit(requests[:3])
    assert not any(name.startswith("root") for name in editor.journal[0].update.tensors)
    for hook in editor._method.hooks:
        keys = ordinary_keys(6, 48, 1)[None]
        assert torch.equal(hook.gate.answer(hook.change, keys)[0], hook.change(keys))


def test_the_rows_that_steps_keep_are_those_of_one_root(tokenizer, requests, covariances):
    """C Cᵀ = I + PᵀA0⁻¹P, where A0⁻¹P = V Cᵀ."""
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, METHOD)
    editor.edit(requests[:2])
    editor.edit(requests[2:5])
    method = editor._method
    for layer in LAYERS:
        root = torch.zeros(5, 5).double()
        root[:2, :2], root[2:] = (step.update.tensors[f"root.{layer}"] for step in editor.journal)
        whitened = method.hooks[layer].gate.factors.right.double() @ root.T
        prior = method.config.covariance_weight * method._covariance.matrices[layer].double()
        torch.testing.assert_close(whitened.T @ prior @ whitened + torch.eye(5), root @ root.T, rtol=1e-4, atol=1e-4)
