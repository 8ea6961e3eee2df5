"""Several processes on one machine, with GPUs that are no more than names: no two see the same one."""

import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from coachhook.gpus import VISIBLE, take_gpus

ROOT = Path(__file__).parents[1]
JOB = """
import os, sys
from coachhook.gpus import take_gpus
take_gpus(int(sys.argv[1]), sys.argv[2])
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    """Start a job that takes so many of four GPUs and keeps them until it is ended."""
    running = []

    def start(count, visible="0,1,2,3"):
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(count), str(tmp_path)],
            env=os.environ | {VISIBLE: visible},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(job)
        return job

    yield start
    for job in running:
        job.kill()
        job.communicate()


def seen(job):
    return job.stdout.readline().strip()


def test_every_job_gets_a_gpu_of_its_own(start):
    jobs = [start(1) for _ in range(4)]
    assert sorted(seen(job) for job in jobs) == ["0", "1", "2", "3"]


def test_a_job_waits_for_a_free_gpu_and_gets_it_however_the_other_one_ended(start):
    first = {seen(job): job for job in [start(1) for _ in range(4)]}
    late = start(1)
    time.sleep(1.5)
    assert late.poll() is None
    first["2"].kill()
    assert seen(late) == "2"


def test_jobs_on_several_gpus_share_none_and_never_wait_with_a_part(start):
    one, pair = start(1), start(2)
    taken = {*seen(one).split(","), *seen(pair).split(",")}
    assert len(taken) == 3
    waiting = [
        start(2),
        start(2),
    ]  # one GPU is free: with a part each, both would wait for ever once the pair is given back
    time.sleep(1.5)
    pair.kill()
    one.kill()
    assert sorted(",".join(seen(job) for job in waiting).split(",")) == ["0", "1", "2", "3"]


def test_what_was_dealt_out_is_kept(monkeypatch, tmp_path):
    for dealt, count in (("2", 1), ("GPU-5f,GPU-7a", 2), ("3", 2)):
        monkeypatch.setenv(VISIBLE, dealt)
        take_gpus(count, tmp_path)
        assert os.environ[VISIBLE] == dealt
    assert list(tmp_path.iterdir()) == []


def test_of_visible_gpus_the_free_ones_are_taken(start):
    jobs = [start(1, visible="MIG-a/1/0, 7,7") for _ in range(2)]
    assert sorted(seen(job) for job in jobs) == ["7", "MIG-a/1/0"]


def test_all_gpus_of_the_machine_are_chosen_from_where_none_were_dealt_out(monkeypatch, tmp_path):
    monkeypatch.setenv(VISIBLE, "")  # so that it is put back
    monkeypatch.delenv(VISIBLE)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    take_gpus(3)  # more than there are
    assert os.environ[VISIBLE] == "0,1"
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]


def test_who_asks_for_none_sees_none(monkeypatch):
    monkeypatch.setenv(VISIBLE, "0")
    take_gpus(0)
    assert os.environ[VISIBLE] == ""


def test_who_asks_in_vain_is_told(monkeypatch, caplog):
    caplog.set_level("INFO", "coachhook")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(VISIBLE, "")
    take_gpus(1)
    assert "GPUs asked for: 1; this job's: none" in caplog.text
    monkeypatch.setenv(VISIBLE, "3")
    take_gpus(1)
    assert "this job's: 3" in caplog.text
    assert caplog.text.count("torch can use no GPU here: running on the CPU") == 2


def test_no_device_is_named_in_code():
    """Which GPU a job has is decided by `take_gpus`, or by who started it: `cuda` is the first that it sees."""
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "workflow").rglob("*.smk")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".smk":
            assert "cuda" not in text.lower(), path
            continue
        for node in ast.walk(ast.parse(text)):
            said = ast.unparse(node)
            if isinstance(node, ast.Constant):
                assert not re.fullmatch(r"(cuda|mps|xpu):?\d+", str(node.value)), f"{path}:{node.lineno}: {said}"
            if isinstance(node, ast.Attribute) and said != "torch.cuda":
                assert node.attr not in ("cuda", "set_device"), f"{path}:{node.lineno}: {said}"
