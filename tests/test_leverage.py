import math

import literal_leverage
import pytest
import torch

from coachhook.leverage import Calibration, LeverageGate, prior_sketch
from coachhook.low_rank import LowRank
from coachhook.solver import FactoredLeastSquares, RecursiveLeastSquares

WEIGHT = 3.0


def ordinary_keys(count, width, seed):
    """Keys as an MLP makes them: rectified, of few causes, some neurons nearly dead."""
    made = torch.Generator().manual_seed(99)  # the same MLP for every sample
    mixing = torch.randn(width // 8, width, generator=made) / (width // 8) ** 0.5
    scale = torch.rand(width, generator=made).pow(3) + 0.01
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(count, width // 8, generator=generator)
    noise = 0.3 * torch.randn(count, width, generator=generator)
    return torch.relu(causes @ mixing + noise - 0.3) * scale


def problem(width=40, batches=4):
    """A covariance, and batches of keys (m×u) unlike ordinary ones."""
    sample = ordinary_keys(8 * width, width, 0).double()
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(width, 1 + i % 3, generator=generator).double().relu() for i in range(batches)]
    return sample.T @ sample / len(sample), batches


def gate_of(covariance, batches, rows=10_000):
    """The solver and the gate once all batches are written."""
    solver, factors = FactoredLeastSquares(covariance, WEIGHT), LowRank()
    for keys in batches:
        factor = solver.factor(keys)[0]
        solver.absorb_factor(factor)
        factors = factors.grown(torch.zeros(1, keys.shape[1]), factor)
    sketch = prior_sketch(solver, len(covariance), rows, 0)
    return solver, LeverageGate().grown(factors, sketch)


@pytest.mark.parametrize("solver_class", [RecursiveLeastSquares, FactoredLeastSquares])
def test_the_leverage_is_the_share_that_dense_algebra_gives(solver_class):
    covariance, batches = problem()
    solver, factors = solver_class(covariance, WEIGHT), []
    for keys in batches:
        factors.append(solver.factor(keys)[0])
        solver.absorb(keys)
    past, prior = torch.cat(batches, 1), WEIGHT * covariance
    some = [*past.T, *ordinary_keys(30, len(covariance), 5).double()]
    whitened = torch.linalg.inv(prior) @ past
    gram = torch.eye(past.shape[1]).double() + past.T @ whitened
    seen = []
    for key in some:
        expected = literal_leverage.leverage(prior, past, key)
        y = whitened.T @ key
        by_gram = (y @ torch.linalg.solve(gram, y) / (key @ torch.linalg.inv(prior) @ key)).item()
        known = (torch.cat(factors, 1).T @ key).square().sum()
        by_factors = (known / solver.prior_root(torch.eye(len(key))).T.mv(key).square().sum()).item()
        by_solver = 1 - (key @ solver.solve(key[:, None])[:, 0] / (key @ torch.linalg.inv(prior) @ key)).item()
        for given in (by_gram, by_factors, by_solver):
            assert abs(given - expected) <= 1e-9
        seen.append(expected)
    assert min(seen[: past.shape[1]]) > 0.5
    assert 0 < min(seen) < max(seen[past.shape[1] :]) < 0.5


def test_factors_alone_carry_the_accumulator():
    covariance, batches = problem()
    keyed, factored = RecursiveLeastSquares(covariance, WEIGHT), FactoredLeastSquares(covariance, WEIGHT)
    again = FactoredLeastSquares(covariance, WEIGHT)
    generator = torch.Generator().manual_seed(2)
    for keys in batches:
        residuals = torch.randn(7, keys.shape[1], generator=generator).double()
        right, root = factored.factor(keys)
        left = torch.linalg.solve_triangular(root, residuals.T, upper=False).T
        again.absorb_factor(again.factor(keys)[0])
        expected = keyed.update(keys, residuals)
        assert (left @ right.T - expected).abs().max() <= 1e-9 * expected.abs().max()
        assert (factored.update(keys, residuals) - expected).abs().max() <= 1e-9 * expected.abs().max()
    probe = torch.randn(len(covariance), 5, generator=generator).double()
    assert (factored.solve(probe) - keyed.solve(probe)).abs().max() <= 1e-9 * keyed.solve(probe).abs().max()
    assert torch.equal(again.solve(probe), factored.solve(probe))
    assert again.absorbed == factored.absorbed == keyed.absorbed
    factored.forget()
    fresh = RecursiveLeastSquares(covariance, WEIGHT)
    torch.testing.assert_close(factored.solve(probe), fresh.solve(probe), rtol=1e-12, atol=0)


def test_the_gate_decides_as_the_loop_over_tokens():
    covariance, batches = problem()
    _, gate = gate_of(covariance, batches)
    keys = torch.cat([ordinary_keys(20, len(covariance), 3), torch.cat(batches, 1).T.float()])[:24].view(4, 6, -1)
    past = torch.cat(batches, 1)
    expected = torch.tensor([[literal_leverage.leverage(WEIGHT * covariance, past, k) for k in row] for row in keys])
    torch.testing.assert_close(gate.leverage(keys), expected.float(), rtol=1e-2, atol=1e-3)  # a sketch in bfloat16
    for threshold in (0.05, 0.3, 0.8):
        swap = LeverageGate(threshold, gate.factors, gate.sketch).swap(keys, None, keys)
        clear = (expected - threshold).abs() > 0.01
        assert torch.equal(swap[clear], (expected >= threshold)[clear])
        assert swap.any()
        assert not swap.all()


def test_no_token_is_swapped_before_an_edit_and_a_key_of_zeros_never():
    covariance, batches = problem()
    _, gate = gate_of(covariance, batches)
    assert LeverageGate().threshold == math.inf
    assert not LeverageGate(0.0, gate.factors, gate.sketch).swap(None, None, torch.zeros(1, 2, 40)).any()


def test_a_decision_is_of_one_token_alone():
    covariance, batches = problem()
    _, gate = gate_of(covariance, batches)
    keys = ordinary_keys(60, len(covariance), 4).view(3, 20, -1)
    whole = gate.leverage(keys)
    garbage = torch.full_like(keys[:, :4], 1e6)
    for padded, cut in ((torch.cat([garbage, keys], 1), slice(4, None)), (torch.cat([keys, garbage], 1), slice(20))):
        torch.testing.assert_close(gate.leverage(padded)[:, cut], whole, rtol=1e-5, atol=1e-7)
    for row in range(3):
        for token in range(20):
            alone = gate.leverage(keys[row : row + 1, token : token + 1])
            torch.testing.assert_close(alone[0, 0], whole[row, token], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [128, 512])
def test_the_sketch_errs_as_it_says(rows):
    width = 1024
    sample = ordinary_keys(6000, width, 0).double()
    covariance = sample.T @ sample / len(sample)
    solver = FactoredLeastSquares(covariance, WEIGHT)
    gate = LeverageGate().grown(LowRank(), prior_sketch(solver, width, rows, 0))
    keys = ordinary_keys(2000, width, 7)
    exact = solver.prior_root(torch.eye(width)).T @ keys.T.double()
    error = gate.prior(keys) / exact.square().sum(0).float() - 1
    told = math.sqrt(2 / rows * (1 - rows / width))
    assert error.std() <= 1.25 * told
    assert error.mean().abs() <= 0.6 * told  # all keys meet the same directions, so their errors do not average out


def test_the_cheap_form_decides_as_the_exact_one_on_999_of_1000_tokens():
    width = 1024
    sample = ordinary_keys(6000, width, 0)
    covariance = sample.double().T @ sample.double() / len(sample)
    subjects = ordinary_keys(40, width, 3)  # edits among ordinary text's causes, some of them near one another
    batches = [row.T.double() for row in (subjects + 0.1 * subjects.roll(1, 0)).split(10)]
    tokens = torch.cat([ordinary_keys(20_000, width, 8), subjects.repeat(20, 1) + 0.02 * ordinary_keys(800, width, 9)])
    decisions = []
    for rows in (512, width):
        _, gate = gate_of(covariance, batches, rows)
        calibration = Calibration(sample[:4096], 0.01, 0.5)
        smallest = calibration.smallest_with(gate, torch.cat(batches, 1).T.float())
        tau = calibration.threshold(gate, gate.factors.right, smallest)
        decisions.append(gate.leverage(tokens) >= tau)
    past = torch.cat(batches, 1)
    inverses = [torch.linalg.inv(WEIGHT * covariance + more) for more in (past @ past.T, torch.zeros(width, width))]

    def exact(keys):
        full, prior = (((keys.double() @ inverse) * keys).sum(-1) for inverse in inverses)
        return 1 - full / prior

    ordinary = exact(sample[:4096]).quantile(0.99, interpolation="higher")
    decisions.append(exact(tokens) >= max(ordinary, 0.5 * exact(past.T).min()))
    assert (decisions[0] == decisions[1]).float().mean() >= 0.999
    assert (decisions[0] == decisions[2]).float().mean() >= 0.999  # float64, dense, both inverses written out
    assert (decisions[1] == decisions[2]).float().mean() >= 0.999
    assert decisions[0][-800:].float().mean() > 0.9
    assert decisions[0][:20_000].float().mean() < 0.015


def test_tau_is_the_larger_of_quantile_and_fraction():
    covariance, batches = problem()
    _, gate = gate_of(covariance, batches)
    background, past = ordinary_keys(200, len(covariance), 6), torch.cat(batches, 1)
    ordinary, edited = gate.leverage(background), gate.leverage(past.T.float())
    factor = gate.factors.right

    def tau(rate, fraction):
        calibration = Calibration(background, rate, fraction)
        return calibration.threshold(gate, factor, calibration.smallest_with(gate, past.T.float()))

    assert tau(0.1, 0.0) == pytest.approx(ordinary.quantile(0.9, interpolation="higher").item(), rel=1e-5)
    assert (ordinary >= tau(0.1, 0.0)).float().mean() == pytest.approx(0.1, abs=0.005)
    assert tau(0.1, 0.9) == pytest.approx(0.9 * edited.min().item(), rel=1e-5)
    assert tau(None, 0.5) == pytest.approx(0.5 * edited.min().item(), rel=1e-5)
    empty = Calibration(background[:0], None, 0.5)
    assert empty.threshold(gate, factor, 0.8) == pytest.approx(0.4)


def test_batch_by_batch_calibrates_as_all_at_once():
    covariance, batches = problem()
    background = ordinary_keys(1100, len(covariance), 6)
    calibration, factors, solver = (
        Calibration(background, 0.05, 0.0),
        LowRank(),
        FactoredLeastSquares(covariance, WEIGHT),
    )
    sketch = prior_sketch(solver, len(covariance), 100, 0)
    gate = LeverageGate().grown(factors, sketch)
    for keys in batches:
        factor = solver.factor(keys)[0].float()
        solver.absorb_factor(factor)
        factors = factors.grown(torch.zeros(1, keys.shape[1]), factor)
        gate = gate.grown(factors)
        tau = calibration.threshold(gate, factor, 1.0)
        expected = gate.leverage(background).quantile(0.95, interpolation="higher").item()
        assert tau == pytest.approx(expected, rel=1e-5)
        calibration.absorb(gate, factor, 1.0)
    calibration.forget()
    assert calibration.smallest == math.inf
    first = gate_of(covariance, batches[:1])[1]
    assert calibration.threshold(first, first.factors.right, 1.0) == pytest.approx(
        first.leverage(background).quantile(0.95, interpolation="higher").item(), rel=1e-5
    )


def test_factors_joined_late_are_the_factors():
    generator = torch.Generator().manual_seed(0)
    lefts, rights = ([torch.randn(n, u, generator=generator) for u in (2, 1, 3)] for n in (5, 7))
    grown, earlier = LowRank(), []
    for left, right in zip(lefts, rights, strict=True):
        earlier.append(grown)
        grown = grown.grown(left, right)
    assert torch.equal(grown.right, torch.cat(rights, 1))
    assert torch.equal(earlier[2].left, torch.cat(lefts[:2], 1))  # what grew out of it left it alone
    expected = sum(left @ right.T for left, right in zip(lefts, rights, strict=True))
    torch.testing.assert_close(grown.dense(), expected)
    vectors = torch.randn(4, 7, generator=generator)
    torch.testing.assert_close(grown.apply(vectors), vectors @ expected.T)
    assert grown.nbytes == 4 * (5 + 7) * 6
