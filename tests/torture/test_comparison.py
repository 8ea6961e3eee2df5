"""What is lost, differs or is left over shows, and the page says so."""

import os
import signal
import subprocess
import sys
from random import Random

import pytest
from workflow.conftest import ROOT

from .comparison import compare
from .page import Torture, write
from .rounds import Round, plan_rounds
from .victims import VICTIMS, Hunter, Kill

FILES = {
    "results/streams/a/metrics.jsonl": '{"score": 1}\n',
    "results/streams/a/cost.jsonl": '{"seconds": 1}\n',
    "figures/cost.csv": "method,seconds\nmemit,1.5\n",
    "results/checkpoints/a/1.json": "1",
}


@pytest.fixture
def folders(tmp_path):
    for folder in ("unbroken", "broken"):
        for name, text in FILES.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
    return tmp_path / "unbroken", tmp_path / "broken"


def test_the_same_files_with_other_times_are_perfect(folders):
    (folders[1] / "results/streams/a/cost.jsonl").write_text('{"seconds": 2.25}\n')
    (folders[1] / "figures/cost.csv").write_text("method,seconds\nmemit,7e-05\n")
    (folders[1] / "results/checkpoints/a/1.json").write_text("2")
    found = compare(*folders)
    assert found.perfect
    assert (found.same, found.timed) == (1, 2)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("results/streams/a/metrics.jsonl", None, "lost"),
        ("results/streams/a/metrics.jsonl", '{"score": 2}\n', "differ"),
        ("results/streams/a/cost.jsonl", '{"seconds": 1}\n{"seconds": 1}\n', "differ"),
        ("figures/cost.csv", "method,seconds\nrome,1.5\n", "differ"),
        ("results/streams/b/metrics.jsonl", "", "further"),
        ("results/streams/a/.metrics.jsonl.host-1.tmp", "", "left"),
    ],
)
def test_what_is_not_the_same_is_named(folders, name, text, kind):
    path = folders[1] / name
    path.parent.mkdir(exist_ok=True)
    path.unlink() if text is None else path.write_text(text)
    found = compare(*folders)
    assert getattr(found, kind) == [name]
    assert found.perfect == (kind == "left")
    torture = Torture(3, 1, 60.0, 600.0, [Round((Kill("stream", 1, 0.5),), 2, (), found, 9.0)], {})
    assert torture.perfect == found.perfect
    page = write(torture)
    assert ("| a stream of edits | 1 | 1 |" in page) == found.perfect
    assert (f"`{name}` is not as it should be" in page) == (not found.perfect)


def test_a_round_with_fewer_kills_than_asked_for_is_not_perfect(folders):
    found = compare(*folders)
    assert not Torture(3, 2, 60.0, 600.0, [Round((Kill("stream", 1, 0.5),), 2, (), found, 9.0)], {}).perfect
    redone = Round((Kill("stream", 1, 0.5),), 2, ("results/streams/a/metrics.jsonl",), found, 9.0)
    assert not Torture(3, 1, 60.0, 600.0, [redone], {}).perfect


def test_thirty_kills_take_turns_in_everything_that_is_there():
    lives = dict.fromkeys(VICTIMS, 1.0)
    plans = plan_rounds(30, 3, lives)
    names = [name for plan in plans for name in plan]
    assert [len(plan) for plan in plans] == [10, 10, 10]
    for name in ("snakemake", "stream", "covariance", "dvc"):
        assert names.count(name) == 6
        assert all(name in plan for plan in plans)
    assert set(names) == set(VICTIMS)
    del lives["dvc"]  # where it is not installed
    assert not any("dvc" in plan for plan in plan_rounds(30, 3, lives))


def test_a_stream_takes_the_turn_of_a_kind_that_is_over(tmp_path):
    script = tmp_path / "tmpx1.edit_stream.py"
    script.write_text("import time\ntime.sleep(100)\n")
    covariance = tmp_path / "results" / "covariances" / "smoke.0.safetensors"
    covariance.parent.mkdir(parents=True)
    covariance.touch()
    streams = [subprocess.Popen([sys.executable, str(script)], cwd=tmp_path) for _ in range(2)]
    try:
        pending = ["dvc"]
        kill = Hunter(tmp_path, dict.fromkeys(VICTIMS, 0.1), Random(0)).kill_one(pending, lambda: True)
        assert (kill.victim, pending) == ("stream", [])
        assert [process.wait() for process in streams if process.pid == kill.pid] == [-signal.SIGKILL]
    finally:
        for process in streams:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (["python3.11", "/env/bin/snakemake", "--cores", "2", "--config", "study=smoke"], "snakemake"),
        (["python3.11", "/p/.snakemake/scripts/tmpx1.edit_stream.py"], "stream"),
        (["python3.11", "/p/.snakemake/scripts/tmpx1.compute_covariance.py"], "covariance"),
        (["python3.11", "/env/bin/coachhook", "covariance", "results/models/smoke"], "covariance"),
        (["python3.11", "/env/bin/dvc", "--wait-for-lock", "repro", "--single-item", "covariance@smoke"], "dvc"),
        (["python3.11", "/env/bin/snakemake", "--snakefile", "S", "--target-jobs", "x", "--cores", "1"], None),
        (["python3.11", "/env/bin/snakemake", "figures", "--cores", "1", "--report", "r.html"], None),
        (["/bin/sh", "-c", "coachhook covariance results/models/smoke"], None),
    ],
)
def test_processes_are_known_by_their_command_lines(line, name):
    assert [other for other, victim in VICTIMS.items() if victim.matches(line)] == ([name] if name else [])


def test_the_page_says_what_was_not_tested_and_names_no_folder_of_this_machine(folders):
    reason = "not tested: only root may mount file systems"
    torture = Torture(3, 30, 60.0, 600.0, [], {"a full disk": reason})
    page = write(torture)
    for line in ("## Not tested", f"| a full disk | {reason} |", "| **all** | **0** | **0** |"):
        assert line in page
    assert "30 kills asked for, 0 in 0 rounds" in page.replace("\n", " ")
    assert os.fspath(ROOT) not in page
    assert not torture.perfect
