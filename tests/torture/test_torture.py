"""The quick part of `make torture`: a slice of the smoke study through a few kills, and through disks that fail."""

import random

import pytest

from .conditions import CONDITIONS, impossible
from .rounds import run_broken
from .slices import COMMAND, make_slice

pytestmark = pytest.mark.study


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(unbroken, tmp_path):
    project, lives = unbroken
    broken = make_slice(tmp_path / "broken")
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown where the test fails
    plan = ["base model", "covariance", "snakemake", "stream"]
    found = run_broken(broken, COMMAND, plan, lives, random.Random(seed), project.root, print)
    assert len(found.kills) >= 3
    assert found.comparison.perfect, found.comparison
    assert found.comparison.same > 20
    assert found.redone == ()


def test_what_the_user_can_mend_is_one_line_and_the_same_command_goes_on(unbroken):
    """The other conditions are part of `make torture` alone: each starts the study a few times."""
    reason = impossible()
    if reason:
        pytest.skip(reason)
    CONDITIONS["running"].check(unbroken[0])
