"""Studies on models from the hub: planned in seconds, and run on tiny stand-ins through every rule."""

import json
import re
import time

import pandas as pd
import pytest
import yaml

from coachhook.provenance import read_provenance
from coachhook.study import load_study

from .conftest import Project, copy_project

STUDIES = ("paper", "long", "modern")
# What of the paper's study is run: one model, both data sets, both rounds, an ablation and a trained editor.
PART = {
    "hook": {"models": ["gpt-j"], "datasets": ["zsre"], "methods": ["coachhook"]},
    "layers": {"models": ["gpt-j"], "datasets": ["zsre"]},
    "table_single_round": {"models": ["gpt-j"], "datasets": ["counterfact-edit"], "methods": ["mend"]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return copy_project(tmp_path_factory.mktemp("hub"))


def _write_part(project: Project) -> None:
    """A study `part` of the paper's own figures and tables, on fewer models, data sets and methods; with ability."""
    studies = project.root / "config" / "studies"
    study = yaml.safe_load((studies / "paper.yaml").read_text(encoding="utf-8"))
    figures = {name: study["figures"][name] | PART.get(name, {}) for name in ("hook", "layers", "contradictions")}
    figures["layers"]["vary"] = {"layers": {"gpt-j": [[8], [3, 4, 5, 6, 7, 8]]}}
    tables = {"table_single_round": study["tables"]["table_single_round"] | PART["table_single_round"]}
    ability = {"tasks": ["mmlu"]}  # of the hub; with tiny=true an example task stands in for it
    content = yaml.safe_dump(study | {"figures": figures, "tables": tables, "ability": ability})
    (studies / "part.yaml").write_text(content, encoding="utf-8")


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_planned_in_seconds_without_a_gpu_a_network_or_records(project, study):
    started = time.monotonic()
    counts = project.job_counts(study=study)
    assert time.monotonic() - started < 20
    planned = load_study(study, project.root / "config", project.root / "workflow" / "schemas")
    models = {stream.model for stream in planned.streams.values()}
    assert counts["edit_stream"] == len(planned.streams)
    assert counts["fetch_model"] == counts["compute_covariance"] == len(models)
    assert counts["draw_figure"] == len(planned.figure_names)
    editors = {stream.trained_editor for stream in planned.streams.values()} - {None}
    assert counts.get("train_editor", 0) == len(editors)


def test_every_job_says_what_it_takes_and_those_with_a_large_model_ask_for_a_gpu(tmp_path):
    project = copy_project(tmp_path)
    _write_part(project)
    for rules in (tmp_path / "workflow" / "rules").glob("*.smk"):  # without messages Snakemake tells all of a job
        text = rules.read_text(encoding="utf-8")
        rules.write_text(re.sub(r"    message:\n.*\n", "", text), encoding="utf-8")
    shown = project.snakemake("--dry-run", study="part")
    asked: dict[str, set[str]] = {}
    for rule, resources in re.findall(r"^rule (\w+):.*?^    resources: (.*?)$", shown, re.MULTILINE | re.DOTALL):
        asked.setdefault(rule, set()).update(re.findall(r"(\w+)=", resources))
    with_models = {"compute_covariance", "train_editor", "edit_stream"}
    assert asked.keys() > with_models | {"make_dataset", "fetch_model", "draw_figure", "aggregate", "make_report"}
    for rule, resources in asked.items():
        assert rule == "all" or {"mem_mb", "disk_mb", "runtime"} <= resources, rule
        assert ("gpu" in resources) == (rule in with_models), rule


def test_missing_records_stop_the_study_before_any_job_in_one_line(project):
    shown = project.snakemake(study="zsre-local", fails=True)
    assert "data/zsre_mend_eval.json is missing: data/README.md says where it comes from" in shown
    assert "Traceback" not in shown
    assert "Data set" not in shown


def test_a_study_that_cannot_fit_is_refused_with_the_number_before_any_job(project):
    _write_part(project)
    models = project.root / "config" / "models.yaml"
    before = models.read_text(encoding="utf-8")
    # Tiny models with keys a million wide: one covariance matrix takes 8 TB.
    models.write_text(before.replace("tiny: {n_embd: 16,", "tiny: {n_embd: 16, n_inner: 1000000,"), encoding="utf-8")
    try:
        shown = project.snakemake(study="part", tiny=True, fails=True)
    finally:
        models.write_text(before, encoding="utf-8")
    assert re.search(r"covariance of tiny-gpt-j, layers 3, .* needs \d+(\.\d+)? TB of memory on ", shown)
    assert "study tiny-part was not started" in shown
    assert "Traceback" not in shown
    assert "Data set" not in shown


@pytest.mark.study
def test_a_part_of_the_paper_s_study_runs_on_tiny_models_through_every_rule(project):
    _write_part(project)
    shown = project.snakemake("--cores", "2", study="part", tiny=True)
    assert re.search(r"mend on tiny-gpt-j, 6 edits in batches of 3: .* of disk", shown)
    assert re.search(r"training mend for tiny-gpt-j, 2 steps: .* of disk, about \d+ minutes", shown)
    assert re.search(r"coachhook on tiny-gpt-j, 6 edits in batches of 3: .* about \d+ minutes", shown)
    figures = project.root / "figures" / "tiny-part"
    for figure in ("hook", "layers", "contradictions"):
        assert (figures / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    assert pd.read_csv(figures / "layers.csv")["layers"].tolist() == ["8", "3-4-5-6-7-8"]
    shares = pd.read_csv(figures / "contradictions.csv")
    assert set(shares["dataset"]) == {"tiny-zsre", "tiny-counterfact-edit"}
    assert (figures / "table_single_round.md").exists()
    model = project.root / "results" / "models" / "tiny-gpt-j"
    config = json.loads((model / "config.json").read_text())
    assert (config["n_layer"], config["dtype"]) == (28, "float16")
    source = json.loads((model / "source.json").read_text())
    assert set(read_provenance(model / "provenance.json").outputs) == {*source["files"], "source.json"}
    assert "all that they were made with is the same" in project.run("coachhook", "verify", "results")
    assert (project.root / "report-tiny-part.html").exists()
    study = load_study("part", project.root / "config", project.root / "workflow" / "schemas", tiny=True)
    for path, stream in study.streams.items():
        rows = (project.root / "results" / "streams" / path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(rows[-1])["edits"] == 6
        measured = {"fluency", "fluency_base", "ability_example-towns_acc", "ability_example-towns_acc_base"}
        assert measured & json.loads(rows[-1]).keys() == (set() if "layers=" in stream.setting else measured)
    assert "Base model" in (figures / "table_single_round.md").read_text(encoding="utf-8")
    assert "Nothing to be done" in project.snakemake(study="part", tiny=True)
