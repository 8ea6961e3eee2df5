"""The smoke study from nothing to its report, and what a second, a changed and a killed run do."""

import fcntl
import json
import os
import re
import signal
import subprocess
import time

import pandas as pd
import pytest
import yaml

from coachhook.editors import METHODS
from coachhook.study import load_study

from .conftest import Project, added, changed

pytestmark = pytest.mark.study
SCORES = ("reliability", "generality", "locality")


def test_one_command_writes_every_stream_figure_table_and_the_report(finished):
    study = load_study("smoke", finished.root / "config", finished.root / "workflow" / "schemas")
    for path, settings in study.streams.items():
        stream = finished.root / "results" / "streams" / path
        rows = [json.loads(line) for line in (stream / "metrics.jsonl").read_text().splitlines()]
        assert {row["protocol"] for row in rows} == {"easyedit", "generate"}
        evaluated = [row["edits"] for row in rows if row["protocol"] == "easyedit"]
        assert evaluated == ([8] if settings.round == "single" else [4, 8])
        assert len(pd.read_parquet(stream / "records.parquet")) > 0
        assert len((stream / "cost.jsonl").read_text().splitlines()) == 3  # two steps, and the edited model
    for figure in study.figures:
        for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
            assert (finished.root / "figures" / "smoke" / f"{figure}.{ending}").read_bytes().startswith(start)
        assert len(pd.read_csv(finished.root / "figures" / "smoke" / f"{figure}.csv")) > 1


@pytest.mark.parametrize(
    ("table", "methods"), [("consecutive", set(METHODS)), ("single_round", {"memit", "coachhook"})]
)
def test_tables_compare_the_methods_that_the_study_names(finished, table, methods):
    folder = finished.root / "figures" / "smoke"
    for suffix in ("", "_generate"):
        rows = pd.read_csv(folder / f"table_{table}{suffix}.csv")
        assert rows.columns[:6].tolist() == ["dataset", "method", "seed", *SCORES]
        assert set(rows["method"]) == methods
        assert rows[list(SCORES)].stack().between(0, 1).all()
        for ending in ("md", "tex"):
            assert "CoachHooK" in (folder / f"table_{table}{suffix}.{ending}").read_text(encoding="utf-8")


def test_editors_are_trained_once_on_people_that_no_stream_names(finished):
    editors = sorted(path.name.split(".")[0] for path in (finished.root / "results" / "editors").rglob("*.safetensors"))
    assert editors == ["mend", "serac"]
    datasets = finished.root / "results" / "datasets"
    training = json.loads((datasets / "smoke-completions" / "training.json").read_text())
    assert len(training) >= 300
    for dataset in ("smoke-completions", "smoke-questions"):
        requests = (datasets / dataset / "requests.json").read_text()
        assert not any(request["subject"] in requests for request in training)


def test_the_report_shows_the_numbers_of_the_results_and_captions(finished):
    words = (finished.root / "results" / "studies" / "smoke" / "report.rst").read_text()
    table = pd.read_csv(finished.root / "figures" / "smoke" / "table_consecutive.csv")
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


def test_a_further_method_is_one_module_one_file_and_one_line_and_runs_no_other_again(finished):
    library, methods = finished.root / "src" / "coachhook" / "editors", finished.root / "config" / "methods"
    module = "from coachhook.editors.coachhook import Memit\n\n\nclass Newest(Memit):\n    pass\n"
    entry = (methods / "memit.yaml").read_text(encoding="utf-8").replace("editor: memit", "editor: newest")
    line = '    "newest": Registered("newest:Newest", {"gate": "off", "past_weight": 0.0}),\n'
    memit, newest = (
        finished.root / f"results/streams/model~smoke/dataset~smoke-completions/method~{name}/setting~default/seed~0"
        for name in ("memit", "newest")
    )
    with (
        added(library / "newest.py", module),
        added(methods / "newest.yaml", entry),
        changed(library / "__init__.py", '    "memit": ', f'{line}    "memit": '),
    ):
        assert finished.job_counts("streams")["edit_stream"] == 1
        finished.snakemake("streams")
        assert (newest / "metrics.jsonl").read_bytes() == (memit / "metrics.jsonl").read_bytes()
    assert finished.jobs() == set()


def test_a_search_chooses_the_values_that_other_studies_use_from_then_on(finished):
    config, figures = finished.root / "config", finished.root / "figures"
    sizes = {"models": ["smoke"], "edits": 4, "batch_size": 4, "evaluate_every": 4, "protocols": ["easyedit"]}
    search = {"datasets": ["smoke-validation"], "methods": ["searched"], "seeds": [0], "trials": 2}
    study = {"description": "A search.", **sizes, "tuning": search}
    method = yaml.safe_load((config / "methods" / "ft-m.yaml").read_text(encoding="utf-8"))
    method["search"] = {"learning_rate": [1e-9, 0.005]}  # the first changes nothing
    tuned = config / "tuned" / "smoke.yaml"
    before = tuned.read_bytes()
    try:
        with (
            added(config / "methods" / "searched.yaml", yaml.safe_dump(method)),
            added(config / "studies" / "searched.yaml", yaml.safe_dump(study)),
        ):
            finished.snakemake("tune", study="searched")
            assert yaml.safe_load(tuned.read_text(encoding="utf-8")) == {"searched": {"learning_rate": 0.005}}
            found = pd.read_csv(figures / "searched" / "search.csv")
            assert found["setting"].tolist() == ["learning_rate=1e-09", "learning_rate=0.005"]
            assert found["chosen"].tolist() == [False, True]
            assert finished.jobs("tune", study="searched") == set()
            streams = load_study("smoke", config, finished.root / "workflow" / "schemas").streams.values()
            values = {stream.hyperparameters["learning_rate"] for stream in streams if stream.method == "searched"}
            assert values == {0.005}
    finally:
        tuned.write_bytes(before)
    assert finished.jobs() == set()


def test_a_value_that_its_method_refuses_stops_before_any_job_in_one_line(finished):
    with changed(finished.root / "config" / "methods" / "grace.yaml", "radius: ", "radius: -"):
        shown = finished.snakemake(fails=True)
        assert "config/methods/grace.yaml, for model smoke: radius: " in shown
        assert "Traceback" not in shown
        assert "Stream:" not in shown
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
    study = {"description": "One stream.", "models": ["smoke"], "edits": 8, "batch_size": 1, "evaluate_every": 4}
    study["protocols"] = ["easyedit"]
    study["figures"] = {"hook": {"datasets": ["smoke-completions"], "methods": ["coachhook"], "seeds": [7]}}
    path = finished.root / "config" / "studies" / "killed.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    stream = finished.root / "results/streams/model~smoke/dataset~smoke-completions/method~coachhook"
    names = ("metrics.jsonl", "records.parquet", "zscores.parquet", "provenance.json")
    results = [stream / "setting~default/seed~7" / name for name in names]
    try:
        _kill_after_step(finished, 3)
        assert not results[0].exists()
        check = finished.root / "scripts" / "check_values.py"
        with changed(check, "import json\n", "raise SystemExit('asked again')\n"):
            shown = finished.snakemake("streams", study="killed")
        first_logged = re.findall(r"step (\d+) of 8", shown)
        assert first_logged, shown
        resumed = [result.read_bytes() for result in results]
        for checkpoint in (finished.root / "results" / "checkpoints").rglob("seed~7/*"):
            checkpoint.unlink()
        finished.snakemake("streams", "--forcerun", "edit_stream", study="killed")
        assert [result.read_bytes() for result in results] == resumed
    finally:
        path.unlink()
