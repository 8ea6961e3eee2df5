"""1,000 edits saved, loaded and rolled back in a process of their own (the benchmark, a small shape)."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_thousand_edits_are_small_and_load_soon():
    command = [sys.executable, str(ROOT / "benchmarks" / "saved_edits.py"), "--shape", "small"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    megabytes = float(re.search(r"layers: ([\d.]+) MB", said).group(1))
    factors = 1000 * 2 * (256 + 2 * 1024) * 4 / 1e6  # edits · layers · widths · bytes
    assert factors < megabytes < factors + 2
    assert all(float(seconds) < 10 for seconds in re.findall(r"([\d.]+) s$", said, re.MULTILINE))
    assert "the same bits" in said
