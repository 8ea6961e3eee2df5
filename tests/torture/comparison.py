"""Results of a broken run beside those of an unbroken one: the same files with the same bytes."""

import base64
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# No results: what a killed run goes on from, and how long jobs took.
_NO_RESULTS = ("results/checkpoints/", "results/benchmarks/")
# They hold times, or are drawn from times: their form is compared.
_TIMED = re.compile(r"(.*/)?(cost\.\w+|provenance\.json)|results/models/[^/]+/training\.json|report[^/]*\.html")


@dataclass
class Comparison:
    """What a broken run's results are beside the unbroken run's.

    Attributes:
        same: files with the same bytes.
        timed: files that hold times, of the same form.
        lost, differ, further: files that are missing, are not the same, or are not in the unbroken run.
        left: temporary files that nobody removed.
    """

    same: int = 0
    timed: int = 0
    lost: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def perfect(self) -> bool:
        return not (self.lost or self.differ or self.further)


def result_files(root: Path) -> dict[str, Path]:
    """Every result of a study by its path in the project."""
    folders = [root / name for name in ("results", "figures", "data/covariances")]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    named = {path.relative_to(root).as_posix(): path for path in (*found, *root.glob("report*.html"))}
    return {
        name: path
        for name, path in named.items()
        if not name.startswith(_NO_RESULTS) and not path.name.startswith(".") and path.suffix != ".lock"
    }


def compare(unbroken: Path, broken: Path) -> Comparison:
    """Hold every result in one folder to the same in another."""
    expected, found, comparison = result_files(unbroken), result_files(broken), Comparison()
    comparison.further = sorted(found.keys() - expected.keys())
    comparison.left = [str(path.relative_to(broken)) for path in (broken / "results").rglob(".*.tmp")]
    for name, path in sorted(expected.items()):
        if name not in found:
            comparison.lost.append(name)
        elif _TIMED.fullmatch(name):
            if _form(path) == _form(found[name]):
                comparison.timed += 1
            else:
                comparison.differ.append(name)
        elif path.read_bytes() == found[name].read_bytes():
            comparison.same += 1
        else:
            comparison.differ.append(name)
    return comparison


def finished(root: Path) -> dict[str, tuple[int, int]]:
    """Files that Snakemake knows to be finished, with what changes where one is written again."""
    markers = [path.name for path in (root / ".snakemake" / "incomplete").glob("*")]
    unfinished = {base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode() for name in markers}
    known = ("results/datasets/", "results/models/", "results/editors/", "results/streams/", "figures/")
    files = {name: path for name, path in result_files(root).items() if name.startswith(known)}
    return {name: _stamp(path) for name, path in files.items() if name not in unfinished}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def _form(path: Path) -> list:
    """What stays the same of a file that holds times."""
    if path.suffix == ".jsonl":
        return [sorted(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".json":
        return sorted(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return list(_columns_and_words(csv.reader(file)))
    content = path.read_bytes()
    ends = {".pdf": b"%%EOF", ".png": b"IEND\xaeB`\x82", ".html": b"</html>"}
    return [content[:4], ends[path.suffix] in content[-64:]]


def _columns_and_words(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """The head of a table, and of each row what is no number."""
    yield next(rows)
    for row in rows:
        yield [cell for cell in row if not cell.replace(".", "").replace("e-", "").isdigit()]
