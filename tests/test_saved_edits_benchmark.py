"""1,000 edits saved, loaded and rolled back in a process of their own (the benchmark, a small shape)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tensor_bytes(method, layers, width, keys, sketch):
    """Of 1,000 edits in batches of 10: their factors, and what the gate keeps besides."""
    factors = 1000 * layers * (width + keys * (2 if method == "coachhook" else 1)) * 4
    if method == "coachhook":
        return factors
    root = sum(10 * 10 * batch * 4 for batch in range(1, 101))
    return factors + layers * (sketch * keys * 2 + root)


@pytest.mark.parametrize("method", ["coachhook", "coachhook-leverage"])
def test_a_thousand_edits_are_small_and_load_soon(method):
    command = [sys.executable, str(ROOT / "benchmarks" / "saved_edits.py"), "--shape", "small", "--method", method]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    megabytes = float(re.search(r"layers: ([\d.]+) MB", said).group(1))
    tensors = tensor_bytes(method, layers=2, width=256, keys=1024, sketch=1024) / 1e6
    assert tensors < megabytes < tensors + 2  # requests, names, the tokenizer
    assert all(float(seconds) < 10 for seconds in re.findall(r"([\d.]+) s$", said, re.MULTILINE))
    assert "the same bits" in said
    at_gpt2_xl = tensor_bytes(method, layers=5, width=1600, keys=6400, sketch=1536) / 1e6
    assert at_gpt2_xl + (megabytes - tensors) < 300
