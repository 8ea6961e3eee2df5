"""All of it: `make torture`, or `python -m torture --kills 6 --page FILE` in tests/."""

import argparse
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from workflow.conftest import ROOT, Project, copy_project

from coachhook.whole_files import write_text

from .conditions import CONDITIONS, ConditionError, impossible
from .page import Torture, write
from .rounds import Round, plan_rounds, run_broken, run_unbroken
from .slices import slice_of

COMMAND = ("snakemake", "--cores", "2", "--config", "study=smoke")
_FURTHER_ROUNDS = 2  # where victims of a plan did not turn up


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main() -> int:
    options = _options()
    begun, draw = time.monotonic(), random.Random(options.seed)
    tell(f"seed {options.seed}: {options.kills} kills in {options.rounds} rounds of the smoke study")
    with TemporaryDirectory() as temporary, ThreadPoolExecutor(1) as beside:
        folder = Path(temporary)
        unbroken = copy_project(folder / "unbroken")
        unbroken.commit()
        started = time.monotonic()
        lives = run_unbroken(unbroken, COMMAND)
        unbroken_seconds = time.monotonic() - started
        tell(f"unbroken: {unbroken_seconds:.0f} s")
        # Studies leave a core idle for much of their time.
        found_conditions = beside.submit(_conditions, slice_of(unbroken, folder / "slice"))
        rounds: list[Round] = []
        plans = plan_rounds(options.kills, options.rounds, lives)
        while plans and len(rounds) < options.rounds + _FURTHER_ROUNDS:
            plan = plans.pop(0)
            tell(f"round {len(rounds) + 1}: {', '.join(plan)}")
            broken = copy_project(folder / f"round-{len(rounds) + 1}")
            broken.commit()
            found = run_broken(broken, COMMAND, plan, lives, draw, unbroken.root, tell)
            tell(f"round {len(rounds) + 1}: {len(found.kills)} kills, {found.starts} starts, {found.seconds:.0f} s")
            tell(f"{found.comparison}, written again: {list(found.redone)}")
            rounds.append(found)
            missing = options.kills - sum(len(done.kills) for done in rounds) - sum(map(len, plans))
            if missing > 0 and not plans:
                plans = plan_rounds(missing, 1, lives)
        conditions = found_conditions.result()
    seconds = time.monotonic() - begun
    torture = Torture(options.seed, options.kills, unbroken_seconds, seconds, rounds, conditions)
    write_text(options.page, write(torture))
    tell(f"written: {options.page}")
    return 0 if torture.perfect and not any(found.startswith("failed") for found in conditions.values()) else 1


def _conditions(finished: Project) -> dict[str, str]:
    """What came of each condition, by its words."""
    reason = impossible()
    if reason:
        tell(f"disks and rights are not tested: {reason}")
        return {condition.words: f"not tested: {reason}" for condition in CONDITIONS.values()}
    found = {}
    for condition in CONDITIONS.values():
        try:
            condition.check(finished)
            found[condition.words] = "passed"
        except ConditionError as error:
            tell(str(error))
            found[condition.words] = "failed"
        tell(f"{condition.words}: {found[condition.words]}")
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="torture")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    return parser.parse_args()


sys.exit(main())
