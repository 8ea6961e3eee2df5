"""What a result was made of and with: a JSON file beside it that two identical runs write alike, wherever and whenever.

An input that has such a file itself is named by it, and stands for all files of its result: a large model is read once,
however much is computed with it, and every result stands at the end of a chain of digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from coachhook.errors import CoachHookError
from coachhook.versions import package_versions
from coachhook.whole_files import file_digest, write_text

FORMAT = 1
NAME = "provenance.json"


class File(BaseModel):
    """A file as it was written."""

    bytes: int
    sha256: str


class Provenance(BaseModel):
    """The content of a provenance file; see `write_provenance`. Relative paths start at its folder."""

    format: int
    command: str
    revision: str | None = Field(description="commit of the project")
    code: str | None
    settings: dict[str, Any]
    inputs: dict[str, str] = Field(description="SHA-256 by relative path")
    elsewhere: dict[str, str] = Field(description="SHA-256 by name, of inputs that lay outside the project")
    outputs: dict[str, File] = Field(description="by relative path")
    measured: list[str] = Field(description="relative paths of outputs that hold times")
    versions: dict[str, str]
    digest: str = Field(description="SHA-256 of all this")

    @property
    def outputs_digest(self) -> str:
        """SHA-256 of the outputs' names, sizes and digests: the same where the same bytes were made again."""
        return _digest({name: file.model_dump() for name, file in self.outputs.items()})


class ProvenanceError(CoachHookError, ValueError):
    """A provenance file that cannot be read; one line with its path."""


def write_provenance(
    path: str | os.PathLike,
    *,
    outputs: Iterable[str | os.PathLike],
    measured: Iterable[str | os.PathLike] = (),
    inputs: Iterable[str | os.PathLike] = (),
    settings: Mapping[str, Any],
    command: str,
    code: str | None = None,
    versions: Mapping[str, str] | None = None,
    root: str | os.PathLike = ".",
) -> None:
    """Write the provenance of outputs that are complete, at once and whole.

    Arguments:
        path: `provenance.json` in the folder of the result, or `NAME.provenance.json`.
        outputs: the files that the result consists of.
        measured: files of the result that hold times, so that no two runs write the same: named without a digest.
        inputs: the files it was made from; those with a provenance beside them are named by it and its outputs' digest.
        settings: all values that it depends on, seeds included.
        command: makes it again, started in `root`.
        code: what computed it, a `code_label`.
        versions: of the packages that computed it, where that was not this process.
        root: the project's folder. Files in it are named relative to `path`, others by their bare names.

    Raises:
        FileNotFoundError: an output or an input does not exist.
    """
    path, root = Path(path), Path(root)
    relative = partial(os.path.relpath, start=path.parent)
    named = {provenance_of(Path(file)) or Path(file) for file in inputs}
    digests = {file: input_digest(file) for file in sorted(named)}
    inside = [file for file in digests if not os.path.relpath(file, root).startswith("..")]
    content = {
        "format": FORMAT,
        "command": command,
        "revision": git_revision(root),
        "code": code,
        "settings": settings,
        "inputs": {relative(file): digests[file] for file in inside},
        "elsewhere": {file.name: digest for file, digest in digests.items() if file not in inside},
        "outputs": {relative(file): _describe(file) for file in sorted(map(Path, outputs))},
        "measured": [relative(file) for file in sorted(map(Path, measured))],
        "versions": dict(versions or package_versions()),
    }
    content = json.loads(json.dumps(content))  # keys of settings become text before they are sorted
    write_text(path, _pack(content | {"digest": _digest(content)}))


def read_provenance(path: str | os.PathLike) -> Provenance:
    """What `write_provenance` has written.

    Raises:
        ProvenanceError: the file is damaged, or of a newer format.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError:
        raise ProvenanceError(f"{path}: is cut short, or no JSON file; remove it, and run what made it again") from None
    newer = isinstance(content, dict) and content.get("format", 0)
    if isinstance(newer, int) and newer > FORMAT:
        raise ProvenanceError(f"{path}: has format {newer}, this version knows {FORMAT}; update coachhook")
    try:
        provenance = Provenance.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise ProvenanceError(f"{path}: {where}: {first['msg']}") from None
    if content.pop("digest") != _digest(content):
        raise ProvenanceError(f"{path}: was changed; remove it, and run what made it again")
    return provenance


def provenance_of(file: Path) -> Path | None:
    """The provenance beside a file that names it as part of its result; None where there is none."""
    for candidate in (file.with_name(NAME), file.with_suffix(f".{NAME}")):
        if candidate.is_file():
            content = read_provenance(candidate)
            if file.name in content.outputs or file.name in content.measured:
                return candidate
    return None


def input_digest(file: Path) -> str:
    """What stands for an input: of a provenance the digest of its outputs, of another file its SHA-256.

    Raises:
        ProvenanceError: the provenance is damaged, or of a newer format.
    """
    return read_provenance(file).outputs_digest if is_provenance(file) else file_digest(file).hex()


def is_provenance(file: Path) -> bool:
    return file.name == NAME or file.name.endswith(f".{NAME}")


def git_revision(root: Path) -> str | None:
    """The commit that is checked out in a project's folder; None where it is no git repository, or there is no git.

    Whether files differ from that commit is not asked: the figures that a study redraws are among them, and what
    counts is in the digest of the code.
    """
    command = ["git", "-C", str(root), "rev-parse", "--show-prefix", "HEAD"]
    try:
        told = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return None
    own = len(told) == 2 and not told[0] and re.fullmatch(r"[0-9a-f]{40,64}", told[1])
    return told[1] if own else None


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_digest(file).hex()}


def _pack(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_pack(content).encode()).hexdigest()
