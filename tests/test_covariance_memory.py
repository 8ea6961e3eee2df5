"""The covariance job's peak memory in a process of its own, against what is announced (the benchmark, small shapes)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from families import FAMILIES, build_family

from coachhook.architectures import ModelParts
from coachhook.covariance_memory import score_bytes

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("shape", ["small", "small-gptj"])
def test_peak_memory_is_within_a_fifth_of_what_is_announced(shape):
    command = [sys.executable, str(ROOT / "benchmarks" / "covariance_memory.py"), "--shape", shape]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    announced, measured = map(float, re.search(r"announced ([\d.]+) GB, measured ([\d.]+) GB", said).groups())
    assert announced > 0.5  # not so small that the libraries are all of it
    assert abs(measured / announced - 1) < 0.2


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_count_where_a_family_writes_them_out(name):
    per_score = {"gptj": 8 + 4, "gemma2": 8}.get(name, 0)
    assert score_bytes(ModelParts(build_family(name)), 64) == per_score * 2 * 64  # two heads, 64 tokens
