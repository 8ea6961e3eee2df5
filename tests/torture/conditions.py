"""A full disk, a read-only folder, missing rights, a vanished input: real ones, and mended afterwards."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


def _while_jobs_run(finished: Project) -> None:
    """One stream's disk fills up, one's becomes read-only, one loses the right to its folder, and one is unharmed."""
    full, fixed, locked, unharmed = METHODS
    with without_streams(finished) as project:
        checkpoints, results = project.root / "results" / "checkpoints", project.root / "results" / "streams"
        folders = {method: checkpoints / stream(method) for method in METHODS}
        for folder in folders.values():
            folder.mkdir(parents=True)
        with _tmpfs(folders[full]) as remount_full, _tmpfs(folders[fixed]) as remount_fixed:

            def harm() -> None:
                _fill(folders[full])
                remount_fixed("ro")
                folders[locked].chmod(0o500)

            shown = _run(project, fails=True, when=VICTIMS["stream"].matches, then=harm)
            for method, words in (
                (full, "No space left on device; make room on its disk"),
                (fixed, "Read-only file system; make it writable"),
                (locked, "Permission denied; give this user the right to it"),
            ):
                words = f"results/checkpoints/{stream(method)}/[^:]*: {words}"
                _expect_line(shown, words)
                _expect_line((project.root / f"logs/edit_stream/{stream(method)}.log").read_text(), words)
            _expect_same(finished, project, results / stream(unharmed), shown)
            remount_full("size=64m")
            remount_fixed("rw")
            folders[locked].chmod(0o700)
            _expect_perfect(finished, project, _run(project))


def _before_jobs_start(finished: Project) -> None:
    """A folder of results that is read-only, full or locked: no job starts, and what there is stays."""
    with without_streams(finished) as project:
        folder = project.root / "results" / "streams" / stream("rect")
        folder.mkdir(parents=True)
        with _tmpfs(folder) as remount:
            remount("ro")
            _expect_line(_run(project, fails=True), f"results/streams/{stream('rect')}: Read-only file system; make it")
            remount("rw")
            _fill(folder)
            _expect_line(_run(project, fails=True), f"results/streams/{stream('rect')}: No space left on device; make")
        folder.chmod(0o500)
        _expect_line(_run(project, fails=True), f"results/streams/{stream('rect')}: Permission denied; give this user")
        if list((project.root / "results" / "streams").rglob("metrics.jsonl")):
            raise ConditionError("a job was started nevertheless")
        folder.chmod(0o700)
        _expect_perfect(finished, project, _run(project))


def _vanished(finished: Project) -> None:
    """The requests go while streams start that will read them."""
    with without_streams(finished) as project:
        requests = project.root / "results" / "datasets" / "smoke-completions" / "requests.json"
        shown = _run(project, fails=True, when=VICTIMS["stream"].matches, then=requests.unlink)
        words = r"results/datasets/smoke-completions/requests.json: No such file or directory; put it back"
        logs = [log.read_text(encoding="utf-8") for log in project.root.glob("logs/edit_stream/**/*.log")]
        if not re.search(words, shown) or not any(re.search(words, log) for log in logs):
            raise ConditionError(f"no clear line on the vanished file:\n{shown}")
        _expect_perfect(finished, project, _run(project))


CONDITIONS = {
    "running": Condition(
        "while jobs run: a disk fills up, one becomes read-only, the right to a folder is lost", _while_jobs_run
    ),
    "starting": Condition("before jobs start: a full disk, a read-only one, no right to a folder", _before_jobs_start),
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


def _expect_perfect(finished: Project, project: Project, shown: str) -> None:
    found = compare(finished.root, project.root)
    if not found.perfect:
        raise ConditionError(f"after mending: {found}\n{shown}")


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
def _tmpfs(folder: Path) -> Iterator[Callable[[str], None]]:
    """Another file system in a folder, of 16 MB; what is given back mounts it anew with other options."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    try:
        yield lambda others: subprocess.run(["mount", "-o", f"remount,{others}", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(folder: Path) -> None:
    with suppress(OSError), open(folder / "filled-up", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
