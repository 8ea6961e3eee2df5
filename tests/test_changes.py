"""Changes added together, block by block, have the bits of changes added one by one, and the values of plain sums."""

import pytest
import torch

from coachhook.changes import add_in_order, dense, kept_change, product, row_blocks, smallest

WIDTHS = [(32, 48), (128, 200), (300, 512)]  # within a block, one block, several


def drawn(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def changes(d, m):
    given = []
    for seed in range(6):
        left, right = drawn(d, 3 + seed, seed), drawn(m, 3 + seed, 100 + seed)
        given.append((product(left, right), left.double() @ right.double().T))
    whole = drawn(d, m, 50)
    return [*given, (dense(whole), whole.double())]


@pytest.mark.parametrize(("d", "m"), WIDTHS)
def test_together_is_one_by_one_bit_for_bit(d, m):
    start = drawn(d, m, 7)
    before = start.clone()
    one_by_one = start
    for change, _ in changes(d, m):
        one_by_one = add_in_order(one_by_one, [change])
    together = add_in_order(start, [change for change, _ in changes(d, m)])
    assert torch.equal(together, one_by_one)
    assert torch.equal(start, before)
    plain = start.double() + sum(whole for _, whole in changes(d, m))
    torch.testing.assert_close(together.double(), plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("d", "m"), WIDTHS[:2])
def test_within_a_block_the_bits_are_those_of_a_plain_sum(d, m):
    left, right, start = drawn(d, 5, 0), drawn(m, 5, 1), drawn(d, m, 2)
    assert torch.equal(add_in_order(start, [product(left, right)]), start + left @ right.T)


def test_blocks_cover_all_rows_and_start_at_multiples_of_eight():
    for rows in (1, 127, 128, 129, 1600):
        blocks = row_blocks(rows)
        assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(rows))
        assert all(block.start % 8 == 0 for block in blocks)


@pytest.mark.parametrize(("columns", "names"), [(18, {"left", "right"}), (20, {"delta"}), (40, {"delta"})])
def test_a_step_keeps_what_is_smaller(columns, names):
    left, right = drawn(32, columns, 0), drawn(48, columns, 1)  # 32·48 / (32 + 48) = 19.2
    kept = smallest(left, right)
    assert set(kept) == names
    assert sum(tensor.numel() for tensor in kept.values()) <= min(32 * 48, columns * 80)
    assert torch.equal(add_in_order(torch.zeros(32, 48), [kept_change(kept)]), left @ right.T)
