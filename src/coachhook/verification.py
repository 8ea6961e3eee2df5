"""Results held to their provenance: what is damaged, and what is no longer as when they were made."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from coachhook.code_digest import label_now
from coachhook.provenance import NAME, File, Provenance, ProvenanceError, input_digest, is_provenance, read_provenance
from coachhook.versions import package_versions
from coachhook.whole_files import file_digest


@dataclass(frozen=True)
class Finding:
    """Something that no longer matches, and the results it concerns."""

    what: str
    problem: str
    results: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verification:
    """What became of results since they were written.

    Attributes:
        results: how many were looked at.
        files: how many files they consist of.
        damaged: files of results that are missing or other than they were written.
        changed_inputs: files that results were made from, and that are others now.
        missing_inputs: those that are not there; the results may have been copied without them.
        code: code that is another now, or gone.
        versions: of packages, that are others now.
    """

    results: int
    files: int
    damaged: list[Finding]
    changed_inputs: list[Finding]
    missing_inputs: list[Finding]
    code: list[Finding]
    versions: list[Finding]

    @property
    def failed(self) -> bool:
        """Whether a result cannot be relied on: it is damaged, or not of the inputs that lie there."""
        return bool(self.damaged or self.changed_inputs)

    @property
    def drifted(self) -> bool:
        """Whether something is of another version now, or not there to be compared."""
        return bool(self.missing_inputs or self.code or self.versions)


def find_provenance(path: str | os.PathLike) -> list[Path]:
    """All provenance files in a folder and in its folders; of a file, itself or the one beside it."""
    path = Path(path)
    if path.is_dir():
        return sorted(file for file in path.rglob(f"*{NAME}") if is_provenance(file))
    beside = (path, path.with_suffix(f".{NAME}"), path.with_name(NAME))
    return [file for file in beside if is_provenance(file) and file.is_file()][:1]


def verify(files: list[Path], told: Callable[[], None] = lambda: None) -> Verification:
    """Hold results to their provenance files.

    A damaged provenance, or one of a newer format, counts as damaged.

    Arguments:
        told: called after each.
    """
    damaged, outputs = [], 0
    inputs: dict[tuple[Path, str], list[str]] = defaultdict(list)
    code: dict[str | None, list[str]] = defaultdict(list)
    versions: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in files:
        try:
            content = read_provenance(file)
        except ProvenanceError as error:
            damaged.append(Finding(str(file), str(error).removeprefix(f"{file}: ")))
        else:
            outputs += len(content.outputs) + len(content.measured)
            damaged += _damage(file.parent, content)
            for name, digest in content.inputs.items():
                inputs[Path(os.path.normpath(file.parent / name)), digest].append(str(file))
            code[content.code].append(str(file))
            for package, version in content.versions.items():
                versions[package, version].append(str(file))
        told()
    changed, missing = _inputs(inputs)
    return Verification(len(files), outputs, damaged, changed, missing, _code(code), _versions(versions))


def _damage(folder: Path, content: Provenance) -> Iterator[Finding]:
    checks = {name: partial(_output_problem, written=written) for name, written in content.outputs.items()}
    checks |= dict.fromkeys(content.measured, _measured_problem)
    for name, check in sorted(checks.items()):
        path = Path(os.path.normpath(folder / name))
        problem = check(path) if path.is_file() else "is missing"
        if problem:
            yield Finding(str(path), problem)


def _output_problem(path: Path, written: File) -> str:
    found, expected = path.stat().st_size, written.bytes
    if found < expected:
        return f"is cut short: {found:,} of {expected:,} bytes"
    if found > expected or file_digest(path).hex() != written.sha256:
        return "was changed"
    return ""


def _measured_problem(path: Path) -> str:
    """Of a file that holds times no digest is known, but that it is whole."""
    content = path.read_bytes()
    if not content:
        return "is empty"
    if path.suffix in (".json", ".jsonl"):
        try:
            for part in content.splitlines() if path.suffix == ".jsonl" else [content]:
                json.loads(part)
        except ValueError:
            return "is cut short or was changed"
    return ""


def _inputs(inputs: dict[tuple[Path, str], list[str]]) -> tuple[list[Finding], list[Finding]]:
    changed, missing, now = [], [], {}
    for (path, digest), results in sorted(inputs.items()):
        if not path.is_file():
            missing.append(Finding(str(path), "is not there", results))
            continue
        if path not in now:
            now[path] = _now(path)
        if now[path] != digest:
            changed.append(Finding(str(path), "is another now", results))
    return changed, missing


def _now(path: Path) -> str:
    try:
        return input_digest(path)
    except ProvenanceError:
        return "damaged"


def _code(code: dict[str | None, list[str]]) -> list[Finding]:
    findings = []
    for label, results in sorted((label, results) for label, results in code.items() if label):
        now = label_now(label)
        if now != label:
            what, _, digest = label.rpartition(": ")
            problem = "is no more" if now is None else f"was {digest}, is {now.rpartition(': ')[2]}"
            findings.append(Finding(what, problem, results))
    return findings


def _versions(versions: dict[tuple[str, str], list[str]]) -> list[Finding]:
    now = package_versions()
    return [
        Finding(package, f"was {version}, is {now.get(package, 'not installed')}", results)
        for (package, version), results in sorted(versions.items())
        if now.get(package) != version
    ]
