import pytest
import torch
from literal import dense_update

from coachhook.solver import CovarianceError, NullSpaceLeastSquares, RecursiveLeastSquares

WIDTH, OUT = 24, 10


def problem(seed=0, batches=5):
    """A covariance with eigenvalues over three decades, and batches (K, R) of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))[0]
    covariance = rotation @ torch.diag(torch.logspace(-2, 1, WIDTH, dtype=torch.float64)) @ rotation.T
    sizes = [1 + (3 * i) % 7 for i in range(batches)]
    keys = [torch.randn(WIDTH, u, generator=generator, dtype=torch.float64) * 3 for u in sizes]
    residuals = [torch.randn(OUT, u, generator=generator, dtype=torch.float64) for u in sizes]
    return (covariance + covariance.T) / 2, keys, residuals


@pytest.mark.parametrize("weight", [0.5, 20.0, 15_000.0])
def test_batches_one_after_the_other_equal_one_joint_batch_for_fixed_targets(weight):
    covariance, keys, _ = problem()
    generator = torch.Generator().manual_seed(1)
    wanted = [torch.randn(OUT, k.shape[1], generator=generator, dtype=torch.float64) for k in keys]
    solver, total = RecursiveLeastSquares(covariance, weight), torch.zeros(OUT, WIDTH, dtype=torch.float64)
    for k, v in zip(keys, wanted, strict=True):
        total += solver.update(k, v - total @ k)  # the residual is what the weights still lack
    joint = dense_update(covariance, weight, None, torch.cat(keys, 1), torch.cat(wanted, 1))
    assert (total - joint).abs().max() <= 1e-9 * max(1.0, joint.abs().max())
    assert joint.abs().max() > 1e-4


@pytest.mark.parametrize("past_weight", [0.0, 0.3, 1.0, 15.0])
def test_each_update_is_the_dense_solution_with_weighted_past_keys(past_weight):
    covariance, keys, residuals = problem()
    solver, past = RecursiveLeastSquares(covariance, 15.0), None
    for k, r in zip(keys, residuals, strict=True):
        expected = dense_update(covariance, 15.0, past, k, r)
        given = solver.update(k, r, past_weight)
        assert given.dtype == torch.float64
        assert (given - expected).abs().max() <= 1e-9 * expected.abs().max()
        weighted = past_weight**0.5 * k
        past = weighted if past is None else torch.cat([past, weighted], 1)
    assert solver.absorbed == (0 if past_weight == 0 else past.shape[1])


def test_more_keys_than_width_and_repeated_keys():
    covariance, _, _ = problem()
    generator = torch.Generator().manual_seed(3)
    solver, past = RecursiveLeastSquares(covariance, 2.0), None
    for _ in range(6):
        k = torch.randn(WIDTH, 9, generator=generator, dtype=torch.float64)
        k[:, 5:] = k[:, :4]
        r = torch.randn(OUT, 9, generator=generator, dtype=torch.float64)
        expected = dense_update(covariance, 2.0, past, k, r)
        assert (solver.update(k, r) - expected).abs().max() <= 1e-9 * expected.abs().max()
        past = k if past is None else torch.cat([past, k], 1)
    assert solver.absorbed == 54 > WIDTH


def test_gain_leaves_the_accumulator_as_it_is_and_solve_inverts_it():
    covariance, keys, _ = problem()
    solver = RecursiveLeastSquares(covariance, 2.0)
    solver.absorb(keys[1])
    once = solver.gain(keys[2])
    assert torch.equal(solver.gain(keys[2]), once)
    system = 2.0 * covariance + keys[1] @ keys[1].T
    torch.testing.assert_close(solver.solve(system), torch.eye(WIDTH).double(), rtol=0, atol=1e-9)


def test_forget_goes_back_to_the_prior():
    covariance, keys, residuals = problem()
    solver = RecursiveLeastSquares(covariance, 2.0)
    fresh = solver.update(keys[1], residuals[1])
    later = solver.update(keys[1], residuals[1])
    assert (fresh - later).abs().max() > 1e-3
    solver.forget()
    assert solver.absorbed == 0
    assert torch.equal(solver.update(keys[1], residuals[1]), fresh)


def test_float32_input_is_solved_in_float64():
    covariance, keys, residuals = problem()
    single = RecursiveLeastSquares(covariance.float(), 2.0).update(keys[0].float(), residuals[0].float())
    double = dense_update(covariance.float(), 2.0, None, keys[0].float(), residuals[0].float())
    assert (single - double).abs().max() <= 1e-9 * double.abs().max()


@pytest.mark.parametrize(
    ("covariance", "words"),
    [
        (torch.ones(3, 4), "not square"),
        (torch.full((3, 3), torch.nan), "NaN"),
        (torch.diag(torch.tensor([1.0, torch.inf])), "infinite"),
        (torch.ones(3, 3), "not positive definite; compute it from more tokens"),
        (-torch.eye(3), "not positive definite"),
    ],
)
def test_unusable_covariances_are_refused_in_one_line(covariance, words):
    with pytest.raises(CovarianceError, match=words) as caught:
        RecursiveLeastSquares(covariance, 1.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_the_weight_must_be_positive(weight):
    with pytest.raises(ValueError, match="covariance_weight"):
        RecursiveLeastSquares(torch.eye(3), weight)


@pytest.mark.parametrize("kind", ["full", "null space"])
def test_keys_absorbed_again_in_their_order_are_recalled_with_the_same_bits(kind, monkeypatch):
    """A rollback forgets all and absorbs what is kept; no equation is solved for that."""
    covariance, keys, _ = problem(batches=6)

    def start():
        return (
            RecursiveLeastSquares(covariance, 15.0) if kind == "full" else NullSpaceLeastSquares(covariance, 0.5, 15.0)
        )

    solver = start()
    for k in keys:
        solver.absorb(k)
    for kept, new in ((4, keys[5]), (2, keys[3]), (0, keys[1])):
        solver.forget()
        assert solver.absorbed == 0
        with monkeypatch.context() as patch:
            patch.setattr(type(solver), "_solve_prior", lambda *_: pytest.fail("solved anew"))
            for k in keys[:kept]:
                solver.absorb(k)
        plain = start()
        for k in keys[:kept]:
            plain.absorb(k)
        assert torch.equal(solver.gain(new), plain.gain(new))
        solver.absorb(new)  # another batch than the one that stood here
        plain.absorb(new)
        assert torch.equal(solver.gain(keys[0]), plain.gain(keys[0]))
        solver.forget()
        for k in keys[:4]:
            solver.absorb(k)
