import pytest
import torch

from coachhook.second_moment import Reservoir, SecondMoments, sketch_bytes

CPU = torch.device("cpu")


def moments(widths, budget, sample=5, seed=0):
    return SecondMoments(widths, sample, budget, seed, dict.fromkeys(widths, CPU))


def batches(width, sizes, seed=0):
    """Keys with a few strong directions, as real ones have, and a mask that leaves some out."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(1, -2, width)
    for size in sizes:
        keys = torch.randn(2, size, width, generator=generator) * scales
        real = torch.ones(2, size, dtype=torch.bool)
        real[1, size // 2 :] = False
        yield keys, real


def changes_literally(width, sizes, budget):
    """The exact change of C0 from one crossing of budget / 2^k to the next, from all keys at once."""
    marks = [budget / 2**halving for halving in range(11)]
    seen, before, found = torch.zeros(0, width, dtype=torch.float64), None, []
    for keys, real in batches(width, sizes):
        earlier = len(seen)
        seen = torch.cat([seen, keys[real].double()])
        if any(earlier < mark <= len(seen) for mark in marks):
            now = seen.T @ seen / len(seen)
            if before is not None:
                found.append((len(seen), float((now - before).norm() / now.norm())))
            before = now
    return found


@pytest.mark.parametrize(("width", "tolerance"), [(12, 1e-9), (256, 1e-9), (700, 0.1)])
def test_the_change_of_c0_is_that_of_whole_matrices(width, tolerance):
    """Exact where Ω = I; else within two standard errors of 256 probes."""
    sizes, budget = [8] * 40, 400
    counted = moments({3: width}, budget)
    told = []
    for keys, real in batches(width, sizes):
        counted.add({3: keys}, real)
        told += counted.look().values()
    expected = changes_literally(width, sizes, budget)
    assert [tokens for tokens, _ in counted.convergence[3]] == [tokens for tokens, _ in expected]
    assert counted.convergence[3][-1][0] == 408  # the first batch that reaches the budget
    torch.testing.assert_close(
        torch.tensor([change for _, change in counted.convergence[3]]),
        torch.tensor([change for _, change in expected]),
        rtol=tolerance,
        atol=0,
    )
    assert told == [change for _, change in counted.convergence[3]]


def test_the_change_falls_as_tokens_grow():
    counted = moments({0: 16}, 4000)
    for keys, real in batches(16, [30] * 100):
        counted.add({0: keys}, real)
        counted.look()
    first, *_, last = [change for _, change in counted.convergence[0]]
    assert last < first / 3


def test_a_state_goes_on_bit_for_bit():
    def run(stop=None):
        counted = moments({1: 300, 2: 8}, 300)
        for number, ((wide, real), (narrow, _)) in enumerate(
            zip(batches(300, [9] * 20), batches(8, [9] * 20), strict=True)
        ):
            if number == stop:
                tensors, info = counted.state()
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
                counted = moments({1: 300, 2: 8}, 300, seed=0)
                counted.restore(tensors.__getitem__, info)
            counted.add({1: wide, 2: narrow}, real)
            counted.look()
        return counted

    whole = run()
    expected = whole.convergence
    matrices, keys = whole.matrices(), whole.reservoir.keys()
    for stop in (0, 1, 7, 19):
        broken = run(stop)
        assert broken.convergence == expected
        assert broken.tokens == whole.tokens
        for layer, matrix in broken.matrices().items():
            assert torch.equal(matrix, matrices[layer])
            assert torch.equal(broken.reservoir.keys()[layer], keys[layer])


def test_a_batch_is_freed_layer_by_layer():
    counted = moments({1: 4, 2: 4}, 100)
    keys, real = next(batches(4, [6]))
    recorded = {1: keys, 2: keys}
    counted.add(recorded, real)
    assert recorded == {}


def test_a_reservoir_that_is_offered_or_drawn_from_is_the_same():
    offered, drawn = Reservoir({0: 1}, 6, 3), Reservoir({0: 1}, 6, 3)
    for chunk in torch.arange(50.0)[:, None].split(8):
        offered.offer({0: chunk})
        drawn.put(0, chunk, drawn.draw(len(chunk)))
    assert torch.equal(offered.keys()[0], drawn.keys()[0])


def test_sketches_are_as_large_as_is_said():
    for width in (10, 700):
        counted = moments({0: width}, 10)
        counted.add({0: torch.randn(1, 10, width)}, torch.ones(1, 10, dtype=torch.bool))
        counted.look()
        assert counted.state()[0]["sketch.0"].nbytes == sketch_bytes(width)
