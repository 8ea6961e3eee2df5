"""A stream's peak memory in a process of its own, against what is announced (the benchmark, two of its shapes)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("shape", ["one-batch-llama", "leverage"])
def test_peak_memory_is_what_is_announced(shape):
    command = [sys.executable, str(ROOT / "benchmarks" / "stream_memory.py"), "--shape", shape]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    announced, measured = map(float, re.search(r"announced ([\d.]+) GB, measured ([\d.]+) GB", said).groups())
    assert announced > 0.5  # not so small that the libraries are all of it
    assert 0.85 < announced / measured < 1.3, said
