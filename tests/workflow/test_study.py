"""The smoke study from nothing to its report, and what a second, a changed and a killed run do."""

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

from .conftest import Project

pytestmark = pytest.mark.study
SCORES = ("reliability", "generality", "locality")


def test_one_command_writes_every_stream_figure_table_and_the_report(finished):
    streams = list((finished.root / "results" / "streams").rglob("metrics.jsonl"))
    assert len(streams) == 5
    for stream in streams:
        rows = [json.loads(line) for line in stream.read_text().splitlines()]
        assert {row["protocol"] for row in rows} == {"easyedit", "generate"}
        assert [row["edits"] for row in rows if row["protocol"] == "easyedit"] == [4, 8]
        assert len(pd.read_parquet(stream.with_name("records.parquet"))) > 0
    for figure in ("hook", "lambda", "zscore", "retention"):
        for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
            assert (finished.root / "figures" / "smoke" / f"{figure}.{ending}").read_bytes().startswith(start)
        assert len(pd.read_csv(finished.root / "figures" / "smoke" / f"{figure}.csv")) > 1
    table = pd.read_csv(finished.root / "figures" / "smoke" / "table-easyedit.csv")
    assert set(table["method"]) == {"memit", "coachhook"}
    assert table[list(SCORES)].stack().between(0, 1).all()


def test_the_report_shows_the_numbers_of_the_results_and_captions(finished):
    words = (finished.root / "results" / "studies" / "smoke" / "report.rst").read_text()
    table = pd.read_csv(finished.root / "figures" / "smoke" / "table-easyedit.csv")
    best = table.loc[table["dataset"] == "smoke-completions", "mean"].max()
    assert f"{100 * best:.1f}" in words
    html = (finished.root / "report-smoke.html").read_text(encoding="utf-8")
    assert "is being forgotten" in html  # the caption of the figure `retention`
    assert "Study <em>smoke</em>" in html or "Study *smoke*" in html


def test_progress_is_visible_and_logged(finished):
    shown = (finished.root / "output.txt").read_text(encoding="utf-8")
    line = "smoke-completions, memit, default, seed 0: step 1 of 2"
    assert line in shown
    logs = (finished.root / "logs" / "edit_stream").rglob("*.log")
    assert any(line in log.read_text(encoding="utf-8") for log in logs)


def test_a_second_run_does_nothing_and_is_quick(finished):
    before = {path: path.stat().st_mtime_ns for path in (finished.root / "results").rglob("*") if path.is_file()}
    started = time.monotonic()
    assert "Nothing to be done" in finished.snakemake()
    assert time.monotonic() - started < 15
    assert {path: path.stat().st_mtime_ns for path in before} == before


@contextmanager
def changed(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def test_a_change_runs_again_what_it_touches(finished):
    library = finished.root / "src" / "coachhook"
    with changed(library / "hooks.py", "import torch\n", "import torch\n\n_CHANGED = True\n"):
        assert finished.jobs() >= {"edit_stream", "draw_figure", "aggregate", "make_report"}
        assert not finished.jobs() & {"make_dataset", "train_base_model", "compute_covariance"}
    with changed(library / "hooks.py", "import torch\n", "import torch  # tensors\n"):
        assert finished.jobs() == set()
    with changed(finished.root / "config" / "models.yaml", "max_tokens: 5000", "max_tokens: 4000"):
        assert finished.jobs() >= {"compute_covariance", "edit_stream"}
        assert "train_base_model" not in finished.jobs()
    assert finished.jobs() == set()


def test_bad_input_stops_before_any_work_in_one_line(finished):
    for arguments, words in (
        (["study=maxi"], "unknown study 'maxi'"),
        (["study=smoke", "stduy=mini"], "config/config.yaml: unknown key 'stduy'; allowed: study"),
    ):
        shown = finished.run("snakemake", "--cores", "1", "--config", *arguments, fails=True)
        assert words in shown
        assert "Traceback" not in shown
        assert "Execute" not in shown


def test_a_second_snakemake_in_the_same_folder_is_refused(finished):
    with (
        open(finished.root / ".snakemake" / "running", "w") as lock,
        changed(finished.root / "config" / "models.yaml", "max_tokens: 5000", "max_tokens: 4000"),
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = finished.snakemake(fails=True)
    assert "another snakemake is running" in shown
    assert finished.jobs() == set()


def _kill_after_step(project: Project, step: int) -> None:
    """Start the study, and kill every process of it once a stream has stored this step."""
    command = ["snakemake", "--cores", "1", "--config", "study=killed"]
    with open(project.root / "killed.txt", "w") as output:
        run = subprocess.Popen(
            command, cwd=project.root, env=project.environment, stdout=output, stderr=output, start_new_session=True
        )
    checkpoints = project.root / "results" / "checkpoints"
    try:
        deadline = time.monotonic() + 300
        while not list(checkpoints.rglob(f"{step:06d}.safetensors")):
            assert run.poll() is None, (project.root / "killed.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def test_a_killed_run_goes_on_with_the_same_command_to_the_same_bytes(finished):
    study = {"description": "One stream.", "models": ["smoke"], "edits": 16, "batch_size": 1, "evaluate_every": 2}
    study["protocols"] = ["easyedit"]
    study["figures"] = {"hook": {"datasets": ["smoke-completions"], "methods": ["coachhook"], "seeds": [7]}}
    path = finished.root / "config" / "studies" / "killed.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    stream = finished.root / "results/streams/model~smoke/dataset~smoke-completions/method~coachhook"
    names = ("metrics.jsonl", "records.parquet", "zscores.parquet")
    results = [stream / "setting~default/seed~7" / name for name in names]
    try:
        _kill_after_step(finished, 3)
        assert not results[0].exists()
        shown = finished.snakemake("streams", study="killed")
        first_logged = re.findall(r"step (\d+) of 16", shown)
        assert first_logged, shown
        resumed = [result.read_bytes() for result in results]
        for checkpoint in (finished.root / "results" / "checkpoints").rglob("seed~7/*"):
            checkpoint.unlink()
        finished.snakemake("streams", "--forcerun", "edit_stream", study="killed")
        assert [result.read_bytes() for result in results] == resumed
    finally:
        path.unlink()
