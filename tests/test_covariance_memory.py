"""The covariance job's peak memory in a process of its own, against what is announced (the benchmark, small shapes)."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_peak_memory_is_within_a_fifth_of_what_is_announced():
    command = [sys.executable, str(ROOT / "benchmarks" / "covariance_memory.py"), "--shape", "small"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    announced, measured = map(float, re.search(r"announced ([\d.]+) GB, measured ([\d.]+) GB", said).groups())
    assert announced > 0.9  # not so small that the libraries are all of it
    assert abs(measured / announced - 1) < 0.2
