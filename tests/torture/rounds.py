"""Runs of a study that are broken again and again by kills, and started again with the same command."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from workflow.conftest import Project

from .comparison import Comparison, compare, finished
from .victims import VICTIMS, Hunter, Kill, Lives, processes

_OFTEN = ("snakemake", "stream", "covariance", "dvc")
_TURNS = (*_OFTEN, "base model", *_OFTEN, "editor", *_OFTEN, "figure")
_PATIENCE = 1800  # seconds for one run of the study


class TortureError(Exception):
    """The study did not come through; the text holds what it printed last."""


@dataclass(frozen=True)
class Round:
    """One study from an empty folder to its end.

    Attributes:
        kills: what was killed on the way.
        starts: how often the command was given.
        redone: finished results that were written again nevertheless.
        comparison: with the unbroken run.
        seconds: all in all.
    """

    kills: tuple[Kill, ...]
    starts: int
    redone: tuple[str, ...]
    comparison: Comparison
    seconds: float


def run_unbroken(project: Project, command: Sequence[str]) -> dict[str, float]:
    """Run a study to its end; how long its processes live."""
    lives = Lives()
    with _started(project, command) as run:
        while run.poll() is None:
            lives.look(project.root)
            time.sleep(0.1)
    _expect_success(project, run)
    lives_by_kind = lives.typical()
    # A kill of Snakemake may come at any moment, but soon enough that the round has others after it.
    return lives_by_kind | {"snakemake": lives_by_kind["snakemake"] / 3}


def run_broken(
    project: Project,
    command: Sequence[str],
    plan: Sequence[str],
    lives: dict[str, float],
    random: Random,
    unbroken: Path,
    tell: Callable[[str], None],
) -> Round:
    """Run a study to its end through the kills of a plan, as far as their victims turn up.

    plan: kinds of victims, in any order.

    Raises:
        TortureError: the same command failed although nothing more was killed.
    """
    begun, kills, pending, starts = time.monotonic(), [], list(plan), 0
    hunter, done = Hunter(project.root, lives, random), {}
    while True:
        starts += 1
        before = len(kills)
        with _started(project, command) as run:
            while pending and run.poll() is None:
                kill = hunter.kill_one(pending, lambda run=run: run.poll() is None)
                if kill is None:
                    break
                kills.append(kill)
                done |= {name: stamp for name, stamp in finished(project.root).items() if name not in done}
                tell(f"killed {VICTIMS[kill.victim].words} (process {kill.pid}), {kill.after:.1f} s after it was seen")
            run.wait(timeout=_PATIENCE)
        if run.returncode == 0:
            break
        if len(kills) == before:
            _expect_success(project, run)
    _wait_for_orphans(project.root)
    now = finished(project.root)
    redone = tuple(sorted(name for name, stamp in done.items() if now.get(name) != stamp))
    comparison = compare(unbroken, project.root)
    return Round(tuple(kills), starts, redone, comparison, time.monotonic() - begun)


def plan_rounds(kills: int, rounds: int, lives: dict[str, float]) -> list[list[str]]:
    """Kinds of victims for each round."""
    turns = [name for name in _TURNS if name in lives]
    drawn = [turns[number % len(turns)] for number in range(kills)]
    return [sorted(drawn[number::rounds]) for number in range(rounds)]


@contextmanager
def _started(project: Project, command: Sequence[str]) -> Iterator[subprocess.Popen]:
    with open(project.root.with_suffix(".txt"), "ab") as output:
        run = subprocess.Popen(command, cwd=project.root, env=project.environment, stdout=output, stderr=output)
        try:
            yield run
        finally:
            if run.poll() is None:
                run.kill()
                run.wait()
            if sys.exception() is not None:
                for process, _ in processes(project.root):
                    process.kill()


def _expect_success(project: Project, run: subprocess.Popen) -> None:
    if run.returncode:
        printed = project.root.with_suffix(".txt").read_text(encoding="utf-8")
        raise TortureError(f"{' '.join(run.args)} ended with {run.returncode}:\n{printed[-6000:]}")


def _wait_for_orphans(root: Path) -> None:
    """What a killed process left running may write until it ends."""
    deadline = time.monotonic() + _PATIENCE
    while any(processes(root)):
        if time.monotonic() > deadline:
            raise TortureError(f"{root}: processes of a killed run do not end")
        time.sleep(0.2)
