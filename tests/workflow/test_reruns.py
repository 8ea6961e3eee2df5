"""What a change runs again: a table of changes and jobs, asked of a dry run on the finished smoke study."""

from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
import yaml

from coachhook.study import load_study

from .conftest import Project, added, changed

pytestmark = pytest.mark.study
STREAMS = 22
DRAWING = {"draw_figure": 8, "aggregate": 1, "gather_metrics": 1, "make_report": 1}
GATES = {"compare_gates": 2}
# A stream that a figure shows and no table: tables stay as they are.
ONE = {"edit_stream": 1, "draw_figure": 1, "gather_metrics": 1, "make_report": 1}
ONE_METHOD = {"edit_stream": 1, **DRAWING, "draw_figure": 2}  # the figures that show every method
TRAINED = {"train_editor": 2, "edit_stream": 2, **DRAWING, "draw_figure": 2}
LOCATE_THEN_EDIT = {"edit_stream": 14, **GATES, **DRAWING}
LAMBDA = {"edit_stream": 11, **GATES, **DRAWING}  # EMMET has its own, AlphaEdit and ROME have none
LAYERS = {"train_editor": 1, "edit_stream": 17, **GATES, **DRAWING}  # five methods have their own, MEND among them
COVARIANCE = {"compute_covariance": 1, **LOCATE_THEN_EDIT}
EDITING = {"edit_stream": STREAMS, **GATES, **DRAWING}
MODEL = {"train_base_model": 1, "compute_covariance": 1, "train_editor": 2, **EDITING}
LIBRARY, MODELS, STUDY = "src/coachhook", "config/models.yaml", "config/studies/smoke.yaml"
WORLD = "smoke:\n    seed: 0\n    subjects"
ALPHA = "  alpha: {datasets: [smoke-completions], methods: [coachhook], seeds: [0], vary: {alpha: [2]}}\n"


@dataclass(frozen=True)
class Change:
    what: str
    file: str
    old: str
    new: str
    jobs: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.what


def one_module(name: str, what: str, jobs: dict[str, int]) -> Change:
    """A further statement in a module."""
    first = "from __future__ import annotations\n"
    return Change(what, f"{LIBRARY}/{name}.py", first, f"{first}\n_CHANGED = True\n", jobs)


NOTHING = (  # of all this no result depends
    Change("a comment", f"{LIBRARY}/hooks.py", "import torch\n", "import torch  # tensors\n"),
    Change("a docstring", f"{LIBRARY}/gates.py", '"""', '"""Gates! '),
    Change("a command", f"{LIBRARY}/cli/shared.py", "SAMPLE = 1000", "SAMPLE = 500"),
    Change("a profile", "profiles/default/profile.yaml", "keep-going: true", "keep-going: false"),
    Change("another model", MODELS, "{mlp_width: 1024, layers: 5, steps: 1400}", "{mlp_width: 512, layers: 5}"),
    Change("another data set", "config/datasets.yaml", "form: questions, count: 4", "form: questions, count: 3"),
)
CHANGES = (
    # Settings
    Change("λ of the model", MODELS, "covariance_weight: 10\n", "covariance_weight: 20\n", LAMBDA),
    Change("λ of a method", "config/methods/emmet.yaml", "weight: 1000", "weight: 500", ONE_METHOD),
    Change("the layers", MODELS, "layers: [0, 1]\n", "layers: [0]\n", LAYERS),
    Change("tokens of the covariance", MODELS, "max_tokens: 5000", "max_tokens: 4000", COVARIANCE),
    Change("steps of the base model", MODELS, "steps: 700", "steps: 600", MODEL),
    Change("steps of trained editors", MODELS, "{steps: 20,", "{steps: 30,", TRAINED),
    Change("the world's seed", "config/datasets.yaml", WORLD, WORLD.replace("0", "1"), {"make_dataset": 2, **MODEL}),
    Change("edits of a stream", STUDY, "edits: 8", "edits: 12", EDITING),
    Change("words of the report", "workflow/report/workflow.rst", "\n", "\n\n", {"aggregate": 1, "make_report": 1}),
    # Code
    one_module("editors/grace", "a method's module", ONE_METHOD),
    one_module("editors/training", "training of editors", TRAINED),
    one_module("targets", "the search for targets", LOCATE_THEN_EDIT),
    one_module("texts", "reading text for the covariance", COVARIANCE),
    one_module("interchange", "training of base models", MODEL),
    Change("the figures' style", f"{LIBRARY}/figure_style.py", '"font.size": 9', '"font.size": 8', DRAWING),
    # More of the same
    Change("a seed", STUDY, "seeds: [0]\n  retention", "seeds: [0, 1]\n  retention", ONE),
    Change("a method", STUDY, "methods: [memit, coachhook]\n", "methods: [memit, coachhook, ft-m]\n", ONE),
    Change("a value", STUDY, "covariance_weight: [10, 100]", "covariance_weight: [10, 100, 200]", ONE),
    Change("a figure", STUDY, "figures:\n", f"figures:\n{ALPHA}", ONE),
)


def test_what_no_result_depends_on_runs_nothing_again(finished):
    with ExitStack() as together:
        for change in NOTHING:
            together.enter_context(changed(finished.root / change.file, change.old, change.new))
        assert finished.job_counts() == {}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_runs_again_what_depends_on_it_and_nothing_else(finished, change):
    with changed(finished.root / change.file, change.old, change.new):
        assert finished.job_counts() == {**change.jobs, "all": 1}


def test_the_finished_study_has_these_streams(finished):
    study = load_study("smoke", finished.root / "config", finished.root / "workflow" / "schemas")
    assert len(study.streams) == STREAMS
    assert finished.job_counts() == {}


@pytest.fixture(scope="module")
def of_a_file(finished) -> Project:
    """A study of one stream of a file's requests, finished beside the other, on a tiny model."""
    study = {"description": "Of a file.", "models": ["gpt-j"], "edits": 4, "batch_size": 4, "evaluate_every": 4}
    figure = {"datasets": ["zsre"], "methods": ["ft-m"], "seeds": [0]}
    study |= {"protocols": ["easyedit"], "figures": {"hook": figure}}
    with added(finished.root / "config" / "studies" / "file.yaml", yaml.safe_dump(study)):
        finished.snakemake(study="file", tiny=True)
        yield finished


def test_a_file_of_requests_runs_again_what_is_made_of_it(of_a_file):
    file = of_a_file.root / "data" / "examples" / "zsre.json"
    assert of_a_file.job_counts(study="file", tiny=True) == {}
    file.touch()
    assert of_a_file.job_counts(study="file", tiny=True) == {}
    with changed(file, "?", "??"):
        jobs = {"make_dataset": 1, **ONE, "aggregate": 1, "all": 1}
        # A tiny model's tokenizer is trained on the examples.
        assert of_a_file.job_counts(study="file", tiny=True) == {"fetch_model": 1, **jobs}
        assert of_a_file.job_counts() == {}
