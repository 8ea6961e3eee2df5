"""A covariance that is killed at any moment ends, started again, with the bytes of an unbroken one."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LAYERS, TEXT, build_model

from coachhook.covariance import compute_covariance, unfinished_path
from coachhook.covariance_file import CovarianceError
from coachhook.reading import Reader
from coachhook.second_moment import SecondMoments
from coachhook.whole_files import temporary_path

TEXTS = [f"{line} {number}" for number in range(12) for line in TEXT]
SETTINGS = {"max_tokens": 900, "batch_tokens": 40, "background": 6, "checkpoint_seconds": 0.0}


class Killed(BaseException):
    pass


def compute(tokenizer, out, texts=TEXTS, family="gpt2", **changes):
    return compute_covariance(build_model(family), tokenizer, texts, LAYERS, out, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def unbroken(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("unbroken") / "c.safetensors"
    compute(tokenizer, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def batches(tokenizer):
    return len(list(Reader(tokenizer, TEXTS, 64, SETTINGS["max_tokens"], SETTINGS["batch_tokens"]).batches()))


@pytest.fixture
def counted(monkeypatch):
    """How many batches were counted; `kill_at` ends the job in the middle of one."""
    calls = []
    original = SecondMoments.add

    def add(moments, recorded, real):
        calls.append(len(calls))
        if len(calls) == counted.kill_at:
            recorded.popitem()
            raise Killed
        original(moments, recorded, real)

    def counted():
        return len(calls)

    counted.kill_at = None
    counted.clear = calls.clear
    monkeypatch.setattr(SecondMoments, "add", add)
    return counted


@pytest.mark.parametrize("share", [0, 0.05, 0.1, 0.45, 0.7, 1])
def test_killed_in_any_batch_it_ends_with_the_same_bytes(tokenizer, tmp_path, unbroken, counted, batches, share):
    moment = 1 + round(share * (batches - 1))
    out = tmp_path / "c.safetensors"
    gone = subprocess.Popen(["true"])
    gone.wait()
    temporary_path(unfinished_path(out), gone.pid).write_bytes(b"killed while it was stored")
    counted.kill_at = moment
    with pytest.raises(Killed):
        compute(tokenizer, out)
    assert not out.exists()
    assert unfinished_path(out).exists() == (moment > 1)
    counted.kill_at = None
    counted.clear()
    compute(tokenizer, out)
    assert out.read_bytes() == unbroken
    assert counted() == batches - (moment - 1)  # nothing is counted twice, and nothing is left out
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_killed_while_reading_it_ends_with_the_same_bytes(tokenizer, tmp_path, unbroken):
    out = tmp_path / "c.safetensors"

    def broken(end):
        yield from TEXTS[:end]
        raise Killed

    reader = Reader(tokenizer, TEXTS, 64, SETTINGS["max_tokens"], SETTINGS["batch_tokens"])
    assert len(list(reader.batches())) > 16  # more than one window of them
    for end in (1, reader.documents // 2, reader.documents - 1):
        with pytest.raises(Killed):
            compute(tokenizer, out, _Reread(lambda end=end: broken(end)))
    compute(tokenizer, out)
    assert out.read_bytes() == unbroken


class _Reread:
    """Texts that can be read again from the start."""

    def __init__(self, texts):
        self._texts = texts

    def __iter__(self):
        return iter(self._texts())


_JOB = """
import sys, time
sys.path.insert(0, sys.argv[1])
import conftest, test_covariance_resume as job
from coachhook.covariance import compute_covariance
from transformers import AutoTokenizer

def slow():
    for text in job.TEXTS:
        time.sleep(0.05)
        yield text

job.compute(AutoTokenizer.from_pretrained(sys.argv[2]), sys.argv[3], slow())
"""


def test_a_real_kill_loses_nothing(tokenizer, tmp_path, unbroken, counted, batches):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "out" / "c.safetensors"
    here = str(Path(__file__).parent)
    job = subprocess.Popen([sys.executable, "-c", _JOB, here, str(tmp_path / "tokenizer"), str(out)])
    deadline = time.monotonic() + 120
    while not unfinished_path(out).exists() and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert not out.exists()
    compute(tokenizer, out)
    assert out.read_bytes() == unbroken
    assert 0 < counted() < batches


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"max_tokens": 901}, "max_tokens"),
        ({"batch_tokens": 41}, "batch_tokens"),
        ({"background": 5}, "background"),
        ({"seed": 1}, "seed"),
        ({"document_tokens": 9}, "document_tokens"),
        ({"family": "gptj"}, "model"),
        ({"texts": ["Another text.", *TEXTS]}, "on other texts"),
        ({"texts": TEXTS[:4]}, "on other texts"),
    ],
)
def test_what_another_job_left_is_not_used(tokenizer, tmp_path, counted, caplog, changes, name):
    caplog.set_level(logging.INFO)
    out, fresh = tmp_path / "c.safetensors", tmp_path / "fresh.safetensors"
    compute(tokenizer, fresh, **changes)
    counted.clear()
    counted.kill_at = 10
    with pytest.raises(Killed):
        compute(tokenizer, out)
    counted.kill_at = None
    compute(tokenizer, out, **changes)
    assert out.read_bytes() == fresh.read_bytes()
    assert any("starting afresh" in line and name in line for line in caplog.messages)


def _flip(content):
    """One bit in the middle of the sums: no header tells it."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"nonsense", lambda content: content[: len(content) // 2], _flip]
)
def test_a_damaged_file_is_not_used(tokenizer, tmp_path, unbroken, counted, caplog, damage):
    caplog.set_level(logging.INFO)
    out = tmp_path / "c.safetensors"
    counted.kill_at = 10
    with pytest.raises(Killed):
        compute(tokenizer, out)
    counted.kill_at = None
    unfinished_path(out).write_bytes(damage(unfinished_path(out).read_bytes()))
    compute(tokenizer, out)
    assert out.read_bytes() == unbroken
    assert any("damaged" in line and "starting afresh" in line for line in caplog.messages)


def test_texts_that_cannot_be_read_twice_and_are_others_are_refused(tokenizer, tmp_path, counted):
    out = tmp_path / "c.safetensors"
    counted.kill_at = 10
    with pytest.raises(Killed):
        compute(tokenizer, out)
    counted.kill_at = None
    with pytest.raises(CovarianceError, match="not those that the unfinished covariance was begun on") as refused:
        compute(tokenizer, out, iter(["Another text."] * 90))
    assert "\n" not in str(refused.value)


def test_it_is_stored_now_and_then_only(tokenizer, tmp_path, counted):
    out = tmp_path / "c.safetensors"
    counted.kill_at = 20
    with pytest.raises(Killed):
        compute(tokenizer, out, checkpoint_seconds=600)
    assert not list(tmp_path.iterdir())
