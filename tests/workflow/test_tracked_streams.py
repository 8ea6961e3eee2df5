"""A finished study tracked by DVC: a fresh clone pulls its streams and only draws."""

import re
import shutil

import pytest
import yaml

from .conftest import Project

pytestmark = [pytest.mark.dvc, pytest.mark.study]


@pytest.fixture(scope="module")
def shared(finished, tmp_path_factory) -> Project:
    """The finished study in a clone of its own, tracked and pushed to a remote."""
    folder = tmp_path_factory.mktemp("shared")
    project = Project(folder / "project")
    shutil.copytree(finished.root, project.root, symlinks=True)
    project.run("dvc", "remote", "add", "--quiet", "--default", "shared", str(folder / "remote"))
    shown = project.run("python", "scripts/track_streams.py", "smoke")
    assert "data/streams/smoke.dvc" in shown
    assert "pushed" in shown
    project.commit()
    return project


def test_tracking_leaves_the_finished_study_finished(shared):
    assert shared.jobs() == set()


def test_git_keeps_only_the_pointer(shared):
    tracked = shared.run("git", "ls-files").splitlines()
    assert "data/streams/smoke.dvc" in tracked
    assert not [path for path in tracked if path.startswith("results/")]


def test_a_fresh_clone_pulls_the_streams_and_redraws_without_editing(shared, tmp_path):
    clone = Project(tmp_path / "clone")
    shared.run("git", "clone", "--quiet", str(shared.root), str(clone.root))
    clone.run("dvc", "pull", "--allow-missing")
    assert clone.jobs() == {"draw_figure", "aggregate", "gather_metrics", "make_report", "all"}
    clone.snakemake()
    for name in ("hook.csv", "lambda.csv", "zscore.csv", "retention.csv", "hook.png", "metrics.json"):
        drawn, first = (project.root / "figures" / "smoke" / name for project in (clone, shared))
        assert drawn.read_bytes() == first.read_bytes(), name
    assert not (clone.root / "results" / "models").exists()
    shown = clone.run("coachhook", "verify", "results")
    assert re.search(r"absent input: results/models/smoke/provenance\.json is not there \(\d\d results\)", shown)
    assert "as they were written, but not all that they were made with is here" in shown
    assert "Nothing to be done" in clone.snakemake()


def test_an_unfinished_study_is_not_tracked(shared):
    folder = "model~smoke/dataset~smoke-completions/method~memit/setting~default/seed~0"
    metrics = shared.root / "results" / "streams" / folder / "metrics.jsonl"
    away = metrics.rename(metrics.with_suffix(".away"))
    try:
        shown = shared.run("python", "scripts/track_streams.py", "smoke", fails=True)
        assert "finish the study first, with make reproduce STUDY=smoke" in shown
        assert "Traceback" not in shown
    finally:
        away.rename(metrics)


def test_dvc_shows_the_main_metrics_and_lists_the_figures(shared):
    pipeline = yaml.safe_load((shared.root / "dvc.yaml").read_text(encoding="utf-8"))
    assert "figures/metrics.json" in pipeline["metrics"]
    shutil.copy(shared.root / "figures" / "smoke" / "metrics.json", shared.root / "figures" / "metrics.json")
    shown = shared.run("dvc", "metrics", "show", "--md")
    assert "consecutive.smoke.smoke-completions.coachhook.mean" in shown
