"""1,000 edits saved, loaded and rolled back in a process of their own (the benchmark, a small shape)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("method", "held"), [("coachhook", 2 * 1024), ("coachhook-leverage", 1024)])
def test_a_thousand_edits_are_small_and_load_soon(method, held):
    command = [sys.executable, str(ROOT / "benchmarks" / "saved_edits.py"), "--shape", "small", "--method", method]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    megabytes = float(re.search(r"layers: ([\d.]+) MB", said).group(1))
    factors = 1000 * 2 * (256 + held) * 4 / 1e6  # edits · layers · widths · bytes
    gate = 0
    if method == "coachhook-leverage":  # per layer its sketch, and of 100 batches of 10 the rows of the keys' root
        gate = 2 * (1024 * 1024 * 2 + sum(10 * 10 * batch * 4 for batch in range(1, 101))) / 1e6
    assert factors + gate < megabytes < factors + gate + 2
    assert all(float(seconds) < 10 for seconds in re.findall(r"([\d.]+) s$", said, re.MULTILINE))
    assert "the same bits" in said
