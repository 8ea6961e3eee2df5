"""`docs/reliability.md`: what was done to the study, and what came of it."""

import platform
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from .rounds import Round
from .victims import VICTIMS

_PACKAGES = ("snakemake", "dvc", "torch", "transformers", "safetensors", "pandas", "matplotlib")


@dataclass(frozen=True)
class Torture:
    """All that was done.

    Attributes:
        seed: of all random moments.
        asked: how many kills were asked for.
        unbroken_seconds, seconds: of the unbroken run, and of everything.
        rounds: the broken runs.
        conditions: what was found of each condition, "passed" or why it could not be had.
    """

    seed: int
    asked: int
    unbroken_seconds: float
    seconds: float
    rounds: Sequence[Round]
    conditions: Mapping[str, str]

    @property
    def kills(self) -> int:
        return sum(len(found.kills) for found in self.rounds)

    @property
    def perfect(self) -> bool:
        """Whether as many kills hit as were asked for, and nothing came of them."""
        same = all(found.comparison.perfect and not found.redone for found in self.rounds)
        return same and self.kills >= self.asked


def write(torture: Torture) -> str:
    """The page, in Markdown."""
    return "\n".join([*_head(torture), *_kills(torture), *_results(torture), *_conditions(torture), *_tail(torture)])


def _head(torture: Torture) -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    minutes = f"{torture.seconds / 60:.0f} minutes in all, {torture.unbroken_seconds / 60:.1f} for the unbroken run"
    return [
        "# Reliability",
        "",
        _paragraph("""
          Written by `make torture`. It runs a study once without a break. Then it runs it again and again from an
          empty folder, and kills processes with SIGKILL at random moments. After each kill the same command is given
          again; nothing is unlocked or removed by hand. At the end every result is held to the unbroken run's, byte by
          byte.
        """),
        "",
        _paragraph(f"""
          Last run: the study `smoke` with `--cores 2`, seed {torture.seed}: {torture.asked} kills asked for,
          {torture.kills} in {len(torture.rounds)} rounds, {minutes}. Python {platform.python_version()}, {versions};
          {platform.system()} {platform.machine()}.
        """),
        "",
    ]


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_on_hyphens=False)


def _kills(torture: Torture) -> list[str]:
    injected = Counter(kill.victim for found in torture.rounds for kill in found.kills)
    good = [found for found in torture.rounds if found.comparison.perfect and not found.redone]
    survived = Counter(kill.victim for found in good for kill in found.kills)
    rows = [f"| {VICTIMS[name].words} | {injected[name]} | {survived[name]} |" for name in VICTIMS if injected[name]]
    total = f"| **all** | **{sum(injected.values())}** | **{sum(survived.values())}** |"
    return [
        "## Kills",
        "",
        "| killed | interruptions injected | survived |",
        "|---|---|---|",
        *rows,
        total,
        "",
        _paragraph("""
          A kill counts where its process was alive at that moment. It is survived where the study then came to its end
          with the same bytes, and wrote no result again that Snakemake had known to be finished.
        """),
        "",
    ]


def _results(torture: Torture) -> list[str]:
    comparisons = [found.comparison for found in torture.rounds]
    rows = {
        "results compared, byte by byte": sum(found.same + len(found.differ) for found in comparisons),
        "results that hold times, compared by their form": sum(found.timed for found in comparisons),
        "results lost": sum(len(found.lost) for found in comparisons),
        "results whose bytes differ": sum(len(found.differ) for found in comparisons),
        "files that the unbroken run does not have": sum(len(found.further) for found in comparisons),
        "finished results written again": sum(len(found.redone) for found in torture.rounds),
        "temporary files that a kill left behind": sum(len(found.left) for found in comparisons),
        "times the command was given": sum(found.starts for found in torture.rounds),
    }
    named = [name for found in comparisons for name in (*found.lost, *found.differ, *found.further)]
    table = ["| over all rounds | |", "|---|---|", *(f"| {name} | {count} |" for name, count in rows.items())]
    return ["## Results", "", *table, "", *(f"- `{name}` is not as it should be" for name in sorted(set(named))), ""]


def _conditions(torture: Torture) -> list[str]:
    rows = [f"| {words} | {found} |" for words, found in torture.conditions.items()]
    return [
        "## Disks, rights and inputs",
        "",
        "| condition | |",
        "|---|---|",
        *rows,
        "",
        _paragraph("""
          Passed: the job ended with one line in the output and in its log, without a traceback, that names the path and
          says what to do; what other jobs had done was there; once the cause was gone the same command went on to the
          same bytes.
        """),
        "",
    ]


def _tail(torture: Torture) -> list[str]:
    return [
        "## Not tested",
        "",
        "- A power cut: files and folders are synced before they are renamed, but no disk was switched off. Damaged",
        "  checkpoints are tested by cutting them short and by turning single bits (`tests/test_whole_files.py`,",
        "  `test_stream.py`, `test_covariance_resume.py`, `test_training.py`).",
        "- Network file systems: two jobs are kept apart by `flock`.",
        "- Kills on GPUs, of models while they are fetched from the hub, and of studies that take days.",
        "- A disk that is full for Snakemake's own folder `.snakemake` too.",
        "",
    ]
