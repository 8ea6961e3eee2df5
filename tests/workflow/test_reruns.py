"""What a change runs again: a table of changes and jobs, asked of a dry run on the finished smoke study."""

from dataclasses import dataclass

import pytest
import yaml

from coachhook.study import load_study

from .conftest import Project, added, changed

pytestmark = pytest.mark.study
STREAMS = 22
DRAWING = {"draw_figure": 7, "aggregate": 1, "make_report": 1}
EDITING = {"edit_stream": STREAMS, **DRAWING}
COVARIANCE = {"compute_covariance": 1, "edit_stream": 13, **DRAWING}
TRAINING = {"train_base_model": 1, "compute_covariance": 1, "train_editor": 2, **EDITING}
LIBRARY, MODELS, STUDY = "src/coachhook", "config/models.yaml", "config/studies/smoke.yaml"
SMOKE_SEED = "smoke:\n    seed: 0\n    subjects"
ALPHA = "  alpha: {datasets: [smoke-completions], methods: [coachhook], seeds: [0], vary: {alpha: [2]}}\n"


@dataclass(frozen=True)
class Change:
    what: str
    file: str
    old: str
    new: str
    jobs: dict[str, int]

    def __str__(self) -> str:
        return self.what


def one_module(name: str, what: str, **jobs: int) -> Change:
    """A further statement in a module."""
    first = "from __future__ import annotations\n"
    return Change(what, f"{LIBRARY}/{name}.py", first, f"{first}\n_CHANGED = True\n", jobs)


CHANGES = (
    # What no result depends on
    Change("a comment", f"{LIBRARY}/hooks.py", "import torch\n", "import torch  # tensors\n", {}),
    Change("a docstring", f"{LIBRARY}/hooks.py", '"""', '"""Hooks! ', {}),
    Change("a profile", "profiles/default/profile.yaml", "keep-going: true", "keep-going: false", {}),
    Change("another model", MODELS, "{mlp_width: 1024, layers: 5, steps: 1400}", "{mlp_width: 512, layers: 5}", {}),
    Change("another data set", "config/datasets.yaml", "form: questions, count: 4", "form: questions, count: 3", {}),
    Change("a command", f"{LIBRARY}/cli/shared.py", "SAMPLE = 1000", "SAMPLE = 500", {}),
    # Settings
    Change("λ of the model", MODELS, "covariance_weight: 10\n", "covariance_weight: 20\n", {}),
    Change("the layers", MODELS, "layers: [0, 1]\n", "layers: [0]\n", {"train_editor": 2, **EDITING}),
    Change("tokens of the covariance", MODELS, "max_tokens: 5000", "max_tokens: 4000", COVARIANCE),
    Change("steps of the base model", MODELS, "steps: 700", "steps: 600", TRAINING),
    Change("steps of trained editors", MODELS, "{steps: 20,", "{steps: 30,", {}),
    Change("the world's seed", "config/datasets.yaml", SMOKE_SEED, SMOKE_SEED.replace("0", "1"), {}),
    Change("λ of a method", "config/methods/emmet.yaml", "covariance_weight: null", "covariance_weight: 30", {}),
    Change("edits of a stream", STUDY, "edits: 8", "edits: 12", EDITING),
    Change("words of the report", "workflow/report/workflow.rst", "\n", "\n\n", {"aggregate": 1, "make_report": 1}),
    # Code
    one_module("editors/grace", "a method's module", edit_stream=1),
    one_module("editors/training", "training of editors", train_editor=2, edit_stream=2, **DRAWING),
    one_module("targets", "the search for targets", **EDITING),
    one_module("texts", "reading text for the covariance", **COVARIANCE),
    one_module("interchange", "training of base models", **TRAINING),
    Change("the figures' style", f"{LIBRARY}/figure_style.py", '"font.size": 9', '"font.size": 8', DRAWING),
    # More of the same
    Change("a seed", STUDY, "seeds: [0]\n  retention", "seeds: [0, 1]\n  retention", {}),
    Change("a method", STUDY, "methods: [memit, coachhook]\n", "methods: [memit, coachhook, ft-m]\n", {}),
    Change("a value", STUDY, "covariance_weight: [10, 100]", "covariance_weight: [10, 100, 200]", {}),
    Change("a figure", STUDY, "figures:\n", f"figures:\n{ALPHA}", {}),
)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_runs_again_what_depends_on_it_and_nothing_else(finished, change):
    with changed(finished.root / change.file, change.old, change.new):
        jobs = finished.job_counts()
        jobs.pop("all", None)
        assert jobs == change.jobs


def test_the_finished_study_has_these_streams(finished):
    study = load_study("smoke", finished.root / "config", finished.root / "workflow" / "schemas")
    assert len(study.streams) == STREAMS
    assert finished.job_counts() == {}


@pytest.fixture(scope="module")
def with_records(finished) -> Project:
    """One stream of a file of requests, beside the finished study."""
    sets, records = finished.root / "config" / "datasets.yaml", finished.root / "data" / "records.json"
    study = {"description": "Of a file.", "models": ["smoke"], "edits": 4, "batch_size": 4, "evaluate_every": 4}
    table = {"datasets": ["records"], "methods": ["ft-m"], "seeds": [0]}
    study |= {"protocols": ["easyedit"], "figures": {"hook": table}}
    content = (finished.root / "data" / "examples" / "zsre.json").read_text(encoding="utf-8")
    with (
        added(finished.root / "config" / "studies" / "records.yaml", yaml.safe_dump(study)),
        changed(sets, "\ndatasets:\n", "\ndatasets:\n  records: {file: records.json}\n"),
        added(records, content),
    ):
        finished.snakemake(study="records")
        yield finished


def test_a_file_of_requests_runs_again_what_is_made_of_it(with_records):
    records = with_records.root / "data" / "records.json"
    assert with_records.job_counts(study="records") == {}
    records.touch()
    assert with_records.job_counts(study="records") == {}
    with changed(records, "?", "??"):
        jobs = {"make_dataset": 1, "edit_stream": 1, "draw_figure": 1, "aggregate": 1, "make_report": 1, "all": 1}
        assert with_records.job_counts(study="records") == jobs
        assert with_records.job_counts(study="smoke") == {}
