"""General ability, by the tasks of EleutherAI's lm-evaluation-harness (package lm-eval, extra `eval`)."""

from __future__ import annotations

import copy
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.editor import Editor
from coachhook.errors import CoachHookError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


class AbilityError(CoachHookError, ValueError):
    """Tasks that cannot be run, in one line."""


class AbilityConfig(BaseModel):
    """What general ability is measured by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = Field(min_length=1, description="names of lm-eval's tasks or groups")
    include_path: str | None = Field(
        None, description="folder of task files (YAML), used instead of lm-eval's own; keep their data there too"
    )
    limit: int | None = Field(None, gt=0, description="the first so many documents of each task; default: all")
    batch_size: int = Field(8, gt=0, description="texts in one pass")


def general_ability(
    model: PreTrainedModel | Editor,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: str | os.PathLike | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Each task's metrics, as the model stands now: `{"boolq": {"acc": 0.61}}`; `acc,filter` where a filter has a name.

    Under `editor.disabled()` it is the base model's ability. The scores do not depend on the batch size but for
    rounding. Generated answers are written with a cache, so a gate that is silent there (the paper's) is silent.

    Arguments:
        tasks: names of tasks or groups.
        include_path: folder of task files (YAML), used instead of lm-eval's own, whose data is mostly on the hub.
        limit: only the first so many documents of each task.
        seed: of the examples that few-shot prompts show, and of what tasks draw.

    Raises:
        AbilityError: lm-eval is not installed, a task is unknown, or its data cannot be read.
    """
    with _quiet(), _seeded():
        manager = _task_manager(include_path)
        _check_known(manager, tasks, include_path)
        from lm_eval import simple_evaluate

        from coachhook.metrics.harness import MaskedModel

        plain = model.model if isinstance(model, Editor) else model
        results = simple_evaluate(
            # lm-eval gives a tokenizer without a padding token one
            model=MaskedModel(plain, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
            tasks=[loaded for name in tasks for loaded in _load(manager, name)],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return {task: _numbers(row) for task, row in results["results"].items()}


def check_tasks(tasks: Sequence[str], include_path: str | os.PathLike | None = None) -> None:
    """Refuse tasks that do not exist, before any work. Raises AbilityError."""
    with _quiet():
        _check_known(_task_manager(include_path), tasks, include_path)


def _task_manager(include_path: str | os.PathLike | None) -> TaskManager:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        problem = f"ability: it needs lm-eval ({error}); install it: pip install 'coachhook[eval]'"
        raise AbilityError(problem) from None
    if include_path is not None and not os.path.isdir(include_path):
        raise AbilityError(f"include_path: {include_path} is no folder; give the one that holds the task files")
    return TaskManager(include_path=include_path, include_defaults=include_path is None)


def _check_known(manager: TaskManager, tasks: Sequence[str], include_path: str | os.PathLike | None) -> None:
    for name in tasks:
        if name not in manager.all_tasks:
            known = f"{include_path} has: {', '.join(manager.all_tasks)}" if include_path else "see `lm-eval ls tasks`"
            raise AbilityError(f"tasks: {name!r} is unknown; {known}")


def _load(manager: TaskManager, name: str) -> list:
    """A group, a task or the tasks of a tag, with its data."""
    try:
        loaded = manager.load([name])
    except Exception as error:  # whatever datasets, YAML or the task's own code raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AbilityError(f"tasks: {name} cannot be loaded ({reason}); mend its file or fetch its data") from error
    return [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())


def _numbers(row: dict) -> dict[str, float]:
    names = {key: key.removesuffix(",none") for key, value in row.items() if isinstance(value, int | float)}
    return {name: row[key] for key, name in names.items() if "," in key and "_stderr" not in key}


@contextmanager
def _seeded() -> Iterator[None]:
    """Afterwards the global generators, which lm-eval seeds, are as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the one that lm-eval seeds)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, lm-eval's log shows errors only."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
