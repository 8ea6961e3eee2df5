"""A full disk, a read-only folder, missing rights, a vanished input: real ones, and mended afterwards."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workflow.conftest import Project

from .comparison import compare
from .slices import COMMAND, METHODS, stream, without_streams
from .victims import VICTIMS, processes

# Root goes past the rights of files, unless it gives up this.
_BOUND = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


class ConditionError(Exception):
    """The study did not take it as it should; the text says how, with what it printed."""


@dataclass(frozen=True)
class Condition:
    """What may befall a study, by nobody's fault.

    Attributes:
        words: what the page calls it.
        check: lets it befall a copy of a finished slice, and mends it; ConditionError where the study does not take it.
    """

    words: str
    check: Callable[[Project], None]


def impossible() -> str | None:
    """Why disks and rights cannot be had as they must be on this machine; None where they can."""
    if os.geteuid() != 0:
        return "only root may mount file systems"
    if missing := [tool for tool in ("mount", "umount", "setpriv") if shutil.which(tool) is None]:
        return f"{missing[0]} is not installed"
    with tempfile.TemporaryDirectory() as folder:
        tries = [["mount", "-t", "tmpfs", "tmpfs", folder], ["umount", folder], [*_BOUND, "true"]]
        failed = next((line for line in tries if subprocess.run(line, capture_output=True).returncode), None)
    return None if failed is None else f"{failed[0]} is not permitted here"


def _disks_and_rights(finished: Project) -> None:
    """One stream on a full disk, one that must write on a read-only one, one without the right, and one unharmed."""
    full, locked, unharmed = "memit", "rect", "ultraedit"
    with without_streams(finished) as project:
        checkpoints, results = project.root / "results" / "checkpoints", project.root / "results" / "streams"
        for method in METHODS:
            (checkpoints / stream(method)).mkdir(parents=True)
            (results / stream(method)).mkdir(parents=True)
        with _tmpfs(checkpoints / stream(full), "size=16k") as small, _tmpfs(results / stream("ft-m"), "ro") as fixed:
            (checkpoints / stream(locked)).chmod(0o500)
            shown = _run(project, fails=True)
            for method, words in (
                (full, f"results/checkpoints/{stream(full)}/[^:]*: No space left on device; make room on its disk"),
                ("ft-m", f"results/streams/{stream('ft-m')}/[^:]*: Read-only file system; make it writable"),
                (locked, f"results/checkpoints/{stream(locked)}/[^:]*: Permission denied; give this user the right"),
            ):
                _expect_line(shown, words)
                _expect_line((project.root / f"logs/edit_stream/{stream(method)}.log").read_text(), words)
            _expect_same(finished, project, results / stream(unharmed), shown)
            small("size=64m")
            fixed("rw")
            (checkpoints / stream(locked)).chmod(0o700)
            shown = _run(project)
            found = compare(finished.root, project.root)
            if not found.perfect:
                raise ConditionError(f"after mending: {found}\n{shown}")


def _vanished(finished: Project) -> None:
    """The requests go while streams start that will read them."""
    with without_streams(finished) as project:
        requests = project.root / "results" / "datasets" / "smoke-completions" / "requests.json"
        shown = _run(project, fails=True, when=VICTIMS["stream"].matches, then=requests.unlink)
        words = r"results/datasets/smoke-completions/requests.json: No such file or directory; put it back"
        for text in (shown, *(log.read_text() for log in project.root.glob("logs/edit_stream/**/*.log"))):
            if not re.search(words, text) or "Traceback" in text:
                raise ConditionError(f"no clear line on the vanished file:\n{text}")
        shown = _run(project)
        found = compare(finished.root, project.root)
        if not found.perfect:
            raise ConditionError(f"after mending: {found}\n{shown}")


CONDITIONS = {
    "disks": Condition("a full disk, a read-only folder, a folder without the right to it", _disks_and_rights),
    "vanished": Condition("an input that vanishes while jobs start", _vanished),
}


def _run(project: Project, fails: bool = False, when: Callable | None = None, then: Callable | None = None) -> str:
    """Give the study's command, and do something as soon as a process is there; all that was printed."""
    with tempfile.TemporaryFile("w+") as output:
        line, where = [*_BOUND, *COMMAND], {"cwd": project.root, "env": project.environment}
        with subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, **where) as run:
            while when is not None and run.poll() is None:
                if any(when(command) for _, command in processes(project.root)):
                    then()
                    break
                time.sleep(0.05)
        output.seek(0)
        shown = output.read()
    if (run.returncode != 0) != fails or "Traceback" in shown:
        raise ConditionError(f"ended with {run.returncode}:\n{shown}")
    return shown


def _expect_line(text: str, words: str) -> None:
    lines = [line for line in text.splitlines() if re.search(words, line)]
    if len(lines) != 1:
        raise ConditionError(f"{len(lines)} lines say {words!r}:\n{text}")


def _expect_same(finished: Project, project: Project, folder: Path, shown: str) -> None:
    """What others have done in the same run is there."""
    for path in folder.iterdir():
        if path.name != "cost.jsonl":
            before = (finished.root / path.relative_to(project.root)).read_bytes()
            if path.read_bytes() != before:
                raise ConditionError(f"{path} is another than in the unbroken run:\n{shown}")
    if not (folder / "metrics.jsonl").exists():
        raise ConditionError(f"{folder} holds no results:\n{shown}")


@contextmanager
def _tmpfs(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Another file system in a folder; what is given back mounts it anew with other options."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield lambda others: subprocess.run(["mount", "-o", f"remount,{others}", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
