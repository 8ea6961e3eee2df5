import math

import literal
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coachhook.gates import NoGate, PaperGate, z_scores

numbers = st.floats(0, 100, width=32)


def changes(*rows):
    """ΔW k of rows of equal length, with the given norms (one output dimension)."""
    return torch.tensor(rows)[..., None]


def padded(distances, left, right, garbage):
    """One row with padding whose content must not matter."""
    row = torch.cat([garbage[:left], distances, garbage[left : left + right]])
    real = torch.zeros(len(row), dtype=torch.bool)
    real[left : left + len(distances)] = True
    return row[None, :, None], real[None]


@settings(deadline=None, max_examples=200)
@given(st.lists(numbers, min_size=2, max_size=40))
def test_no_z_score_exceeds_its_bound(distances):
    z = z_scores(changes(distances))[0]
    count = len(distances)
    assert torch.all(z.isnan() | (z <= (count - 1) / math.sqrt(count) + 1e-5))


@pytest.mark.parametrize("count", [2, 5, 7, 30])
def test_the_bound_is_reached_by_one_token_that_stands_out(count):
    z = z_scores(changes([1.0] + [0.0] * (count - 1)))
    assert z.max().item() == pytest.approx((count - 1) / math.sqrt(count), abs=1e-5)


@settings(deadline=None, max_examples=200)
@given(st.lists(numbers, min_size=1, max_size=6))
def test_a_prompt_under_seven_tokens_never_swaps_at_the_published_alpha(distances):
    assert not PaperGate(2.2).swap(changes(distances), None).any()


def test_seven_tokens_can_swap_at_the_published_alpha():
    swap = PaperGate(2.2).swap(changes([0.0] * 6 + [1.0]), None)
    assert swap.tolist() == [[False] * 6 + [True]]


def test_one_prompt_of_five_tokens_pulls_alpha_down_for_ever():
    gate = PaperGate(2.2)
    gate.tighten(changes([0.0, 0.0, 3.0, 0.0, 0.0]), torch.ones(1, 5, dtype=torch.bool))
    assert gate.alpha == pytest.approx(4 / math.sqrt(5), abs=1e-5)
    assert gate.alpha <= 1.79
    gate.tighten(changes([0.0] * 30 + [9.0]), torch.ones(1, 31, dtype=torch.bool))  # its z is above 5
    assert gate.alpha <= 1.79


def test_z_scores_equal_the_definition_prompt_by_prompt():
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(4, 9, 3, generator=generator)
    real = torch.ones(4, 9, dtype=torch.bool)
    real[1, 5:], real[2, :3], real[3, 2:] = False, False, False
    z = z_scores(change, real)
    for row in range(4):
        expected = literal.z_scores(change[row][real[row]].double().norm(dim=-1)).float()
        torch.testing.assert_close(z[row][real[row]], expected, rtol=0, atol=1e-5)
        assert z[row][~real[row]].isnan().all()


def test_one_token_alone_has_no_z_score_and_is_not_swapped():
    change = changes([5.0])
    assert z_scores(change).isnan().all()
    for alpha in (2.2, 0.0, -math.inf):
        assert not PaperGate(alpha).swap(change, None).any()


def test_one_real_token_among_padding_is_not_swapped():
    change, real = padded(torch.tensor([5.0]), 3, 2, torch.arange(9.0))
    assert not PaperGate(-math.inf).swap(change, real).any()


def test_equal_distances_swap_nothing():
    assert not PaperGate(-math.inf).swap(torch.zeros(2, 8, 3), None).any()  # as with W_h = W0


@settings(deadline=None, max_examples=100)
@given(
    st.lists(numbers, min_size=2, max_size=20, unique=True),
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from([0.0, 1e6, math.nan, math.inf]),
)
def test_padding_on_either_side_changes_no_decision(distances, left, right, fill):
    alone = torch.tensor(distances)
    gate = PaperGate(1.0)
    change, real = padded(alone, left, right, torch.full((24,), fill))
    z = z_scores(alone[None, :, None])[0]
    clear = (z - 1.0).abs() > 1e-4  # a z-score on the very threshold may round to either side
    given_swap = gate.swap(change, real)[0]
    assert torch.equal(given_swap[real[0]][clear], (z >= 1.0)[clear])
    assert not given_swap[~real[0]].any()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(numbers, min_size=1, max_size=30), min_size=1, max_size=8))
def test_alpha_never_rises(prompts):
    gate, before = PaperGate(2.2), 2.2
    for distances in prompts:
        gate.tighten(changes(distances), torch.ones(1, len(distances), dtype=torch.bool))
        assert gate.alpha <= before
        before = gate.alpha


def test_alpha_becomes_the_smallest_of_the_prompts_highest_z_scores():
    generator = torch.Generator().manual_seed(1)
    change = torch.rand(3, 12, 1, generator=generator)
    real = torch.ones(3, 12, dtype=torch.bool)
    real[1, 6:], real[2, 1:] = False, False  # the last prompt has one token: no z-score, no say
    gate = PaperGate(9.0)
    gate.tighten(change, real)
    highest = [literal.z_scores(change[row][real[row]][:, 0].double()).max().item() for row in (0, 1)]
    assert gate.alpha == pytest.approx(min(highest), abs=1e-5)


def test_prompts_without_z_scores_leave_alpha():
    gate = PaperGate(2.2)
    gate.tighten(torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool))
    gate.tighten(torch.ones(1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    assert gate.alpha == 2.2


def test_later_tokens_change_the_decision_about_an_earlier_one():
    gate = PaperGate(2.2)
    assert not gate.swap(changes([0.0, 1.0, 0.0, 0.0]), None)[0, 1]
    assert gate.swap(changes([0.0, 1.0] + [0.0] * 9), None)[0, 1]


def test_the_gate_is_blind_to_scale():
    distances = [0.1, 0.2, 0.15, 9.0, 0.3, 0.1, 0.2, 0.25]
    tiny = [1e-4 * distance for distance in distances]
    assert torch.equal(PaperGate(2.2).swap(changes(distances), None), PaperGate(2.2).swap(changes(tiny), None))
    assert PaperGate(2.2).swap(changes(tiny), None).any()


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_tiny_and_huge_distances_keep_their_z_scores(scale):
    distances = torch.tensor([1.0, 2.0, 4.0, 1.0, 3.0])
    expected = z_scores(distances[None, :, None])
    given = z_scores((distances * scale)[None, :, None])
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_no_gate_answers_everywhere():
    assert NoGate().swap(torch.zeros(1, 1, 2), None) is None
