"""What is killed: the processes of a running study, known by their folder and command line."""

import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import psutil

_POLL = 0.1  # seconds


@dataclass(frozen=True)
class Victim:
    """A kind of process.

    Attributes:
        words: what the page calls it.
        matches: whether a command line is of this kind.
        makes: pattern of the files that the study has from it in the end, and how many; None comes to the last.
    """

    words: str
    matches: Callable[[Sequence[str]], bool]
    makes: tuple[str, int] | None = None

    def is_over(self, root: Path) -> bool:
        """Whether none of its kind will come any more."""
        return self.makes is not None and len(list(root.glob(self.makes[0]))) >= self.makes[1]


def _script(*names: str) -> Callable[[Sequence[str]], bool]:
    """Python with one of our scripts, as Snakemake starts it: under a temporary name that ends like its own."""
    return lambda line: any(word.endswith(f".{name}.py") for word in line[1:] for name in names)


def _is_snakemake(line: Sequence[str]) -> bool:
    """The one that was started by hand, none that it starts for a job or for the report."""
    runs = any(Path(word).name == "snakemake" for word in line[:2])
    return runs and "--cores" in line and not {"--mode", "--report", "--target-jobs"} & set(line)


def _is_covariance(line: Sequence[str]) -> bool:
    """The job, or the command that computes in it, alone or under DVC."""
    command = any(Path(word).name == "coachhook" for word in line[:2]) and "covariance" in line
    return command or _script("compute_covariance")(line)


def _is_dvc(line: Sequence[str]) -> bool:
    return any(Path(word).name == "dvc" for word in line[:2]) and "repro" in line


_COVARIANCE = ("results/covariances/*.safetensors", 1)
_BASE_MODEL, _EDITORS = ("results/models/*/model.safetensors", 1), ("results/editors/*/*.safetensors", 2)
# In the order in which a study starts them; Snakemake is there all the time.
VICTIMS = {
    "snakemake": Victim("Snakemake, its jobs left running", _is_snakemake),
    "base model": Victim("training of the base model", _script("train_base_model"), _BASE_MODEL),
    "covariance": Victim("the covariance job", _is_covariance, _COVARIANCE),
    "dvc": Victim("DVC", _is_dvc, _COVARIANCE),
    "editor": Victim("training of an editor", _script("train_editor"), _EDITORS),
    "stream": Victim("a stream of edits", _script("edit_stream")),
    "figure": Victim("a figure or a table", _script("draw_figure", "aggregate")),
}


def processes(root: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """All living processes that work in a folder, with their command lines."""
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.cmdline()
        except psutil.Error:  # it has ended, or is nobody's business
            continue


class Lives:
    """How long processes of each kind live, as seen in an unbroken run."""

    def __init__(self):
        self._seen: dict[tuple[str, int], list[float]] = {}

    def look(self, root: Path) -> None:
        now = time.monotonic()
        for process, line in processes(root):
            for name, victim in VICTIMS.items():
                if victim.matches(line):
                    self._seen.setdefault((name, process.pid), [now, now])[1] = now

    def typical(self) -> dict[str, float]:
        """Seconds by kind; kinds that were not there are left out."""
        spans = defaultdict(list)
        for (name, _), (first, last) in self._seen.items():
            spans[name].append(last - first)
        return {name: median(seconds) for name, seconds in spans.items()}


@dataclass(frozen=True)
class Kill:
    """One kill that hit: what, and how many seconds after the process was first seen."""

    victim: str
    pid: int
    after: float


class Hunter:
    """Kills processes of a study at random moments of their lives.

    Arguments:
        root: the study's folder.
        lives: typical lives by kind of victim, in seconds.
    """

    def __init__(self, root: Path, lives: dict[str, float], random: Random):
        self._root, self._lives, self._random = root, lives, random
        self._passed_over: set[int] = set()

    def kill_one(self, pending: list[str], running: Callable[[], bool]) -> Kill | None:
        """Wait for a process of a pending kind, and kill it at a random moment of its life.

        Snakemake is there all the time: its turn comes as often as is its share of what is pending. Of kinds that are
        over, as some ended before their moment, streams take the turns. None where `running()` ends first.

        pending: kinds; the one that was killed is taken out.
        """
        others = [name for name in pending if name != "snakemake"]
        of_snakemake = self._random.random() * len(pending) >= len(others)
        skip = self._random.randint(0, 1)  # there are many streams
        # DVC lives within the covariance job, which is always seen first.
        spared = self._random.choice(("covariance", "dvc")) if {"covariance", "dvc"} <= set(pending) else None
        while running():
            pending[:] = ["stream" if VICTIMS[name].is_over(self._root) else name for name in pending]
            wanted = ["snakemake"] if of_snakemake else [name for name in pending if name not in ("snakemake", spared)]
            name, process = self._find(wanted)
            if process is None:
                time.sleep(_POLL)
                continue
            self._passed_over.add(process.pid)
            if name == "stream" and skip > 0:
                skip -= 1
                continue
            delay = self._random.uniform(0, self._lives[name])
            time.sleep(delay)
            if _kill(process):
                pending.remove(name)
                return Kill(name, process.pid, delay)
            of_snakemake = "snakemake" in pending  # that one had ended; Snakemake does not before its moment
        return None

    def _find(self, names: Sequence[str]) -> tuple[str, psutil.Process] | tuple[None, None]:
        """A process of one of these kinds that was not passed over yet."""
        shuffled = self._random.sample(names, len(names))
        for process, line in processes(self._root):
            for name in shuffled:
                if VICTIMS[name].matches(line) and process.pid not in self._passed_over:
                    return name, process
        return None, None


def _kill(process: psutil.Process) -> bool:
    """Whether it was alive, and is no more, by this signal."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        process.send_signal(signal.SIGKILL)  # refuses where another process has its number by now
    except psutil.Error:
        return False
    return True
