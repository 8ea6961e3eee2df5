"""A directory of edits under lm-eval, by the two ways that docs/command_line.md shows."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from ability_tasks import TASKS
from conftest import build_model
from test_editors import make_editor

from coachhook import Editor
from coachhook.metrics.ability import general_ability

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")


@pytest.fixture(scope="module")
def edits(tmp_path_factory, tokenizer, covariances, requests):
    folder = tmp_path_factory.mktemp("lm_eval")
    build_model("gpt2").save_pretrained(folder / "base")
    model = type(build_model("gpt2")).from_pretrained(folder / "base")
    editor = make_editor(model, tokenizer, covariances, "coachhook", alpha=1.2, target_lr=0.5)
    editor.edit(requests)
    editor.save_pretrained(folder / "edits")
    return folder / "edits"


def evaluated(tasks, **arguments):
    import coachhook.lm_eval  # noqa: F401
    from coachhook.metrics.ability import _load, _quiet, _seeded, _task_manager

    with _quiet(), _seeded():
        manager = _task_manager(tasks)
        loaded = [task for name in TASKS for task in _load(manager, name)]
        found = lm_eval.simple_evaluate(
            model="coachhook", tasks=loaded, task_manager=manager, bootstrap_iters=0, **arguments
        )
    return found["results"]


def test_scores_are_those_of_the_editor_whatever_the_batch_size(edits, tasks):
    editor = Editor.from_pretrained(edits)
    wanted = general_ability(editor, editor.tokenizer, TASKS, include_path=tasks)
    with editor.disabled():
        base = general_ability(editor, editor.tokenizer, TASKS, include_path=tasks)
    assert wanted["texts"] != base["texts"]
    for size in (1, 4):
        found = evaluated(tasks, model_args=f"path={edits}", batch_size=size, device="cpu")
        assert found["texts"]["bits_per_byte,none"] == pytest.approx(wanted["texts"]["bits_per_byte"], rel=1e-5)
        assert found["cities"]["acc,none"] == wanted["cities"]["acc"]
        assert found["write"]["exact_match,none"] == wanted["write"]["exact_match"]
    found = evaluated(tasks, model_args={"path": str(edits), "step": 0}, batch_size=8, device="cpu")
    assert found["texts"]["bits_per_byte,none"] == pytest.approx(base["texts"]["bits_per_byte"], rel=1e-5)


def test_what_does_not_fit_is_one_line(edits):
    from coachhook.errors import CoachHookError
    from coachhook.lm_eval import EditedModel

    with pytest.raises(CoachHookError, match="model_args: path is missing"):
        EditedModel()
    with pytest.raises(CoachHookError, match="batch_size: 'auto' is not a number"):
        EditedModel(path=edits, batch_size="auto")
    with pytest.raises(CoachHookError, match="step: 2 is not between 0 and 1"):
        EditedModel(path=edits, step=2)
    with pytest.raises(CoachHookError, match=r"edits\.json: no such file"):
        EditedModel(path=edits / "none")


def test_the_entry_point_is_the_model():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["lm_eval.models"].items()
    from coachhook.lm_eval import EditedModel

    assert EntryPoint(name, value, "lm_eval.models").load() is EditedModel


# lm-eval's command reads some thousand task files of its own first; here it reads those of the test alone.
RUN = """
import functools, runpy
import lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
runpy.run_module("coachhook.lm_eval", run_name="__main__", alter_sys=True)
"""


def test_lm_evals_command_with_the_model(edits, tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    model = ["--model", "coachhook", "--model_args", f"path={edits}", "--device", "cpu", "--batch_size", "2"]
    files = ["--tasks", "cities", "--include_path", tasks, "--output_path", tmp_path / "out"]
    command = [sys.executable, "-c", RUN, "run", *model, *files]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (file,) = (tmp_path / "out").rglob("results*.json")
    editor = Editor.from_pretrained(edits)
    wanted = general_ability(editor, editor.tokenizer, ["cities"], include_path=tasks)
    assert json.loads(file.read_text())["results"]["cities"]["acc,none"] == wanted["cities"]["acc"]
