"""The quick part of `make torture`: a slice of the smoke study through a few kills, and through disks that fail."""

import random

import pytest

from .conditions import CONDITIONS, impossible
from .rounds import run_broken
from .slices import COMMAND, undone

pytestmark = pytest.mark.study
PLAN = ("covariance", "dvc", "snakemake", "stream")
LIVES = {"covariance": 8.0, "dvc": 8.0, "snakemake": 12.0, "stream": 5.0}  # seconds; on slow machines they live longer


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(unbroken, tmp_path):
    made = ("results/covariances", "data/covariances", ".dvc/cache", ".dvc/tmp")
    broken = undone(unbroken, tmp_path / "broken", *made)
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown where the test fails
    found = run_broken(broken, COMMAND, PLAN, LIVES, random.Random(seed), unbroken.root, print)
    assert len(found.kills) >= 3
    assert found.comparison.perfect, found.comparison
    assert found.comparison.same > 20
    assert found.redone == ()


def test_what_the_user_can_mend_is_one_line_and_the_same_command_goes_on(unbroken):
    """The other conditions are part of `make torture` alone: each starts the study a few times."""
    reason = impossible()
    if reason:
        pytest.skip(reason)
    CONDITIONS["running"].check(unbroken)
