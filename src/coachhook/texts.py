"""Ordinary text for covariances: documents from local files or streamed from the hub, read as often as one likes."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coachhook.errors import CoachHookError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_BATCH_ROWS = 256


class TextError(CoachHookError, ValueError):
    """A text cannot be read: missing, damaged, without the field asked for, or the hub out of reach."""


def open_texts(
    sources: Sequence[str | os.PathLike],
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    field: str = "text",
) -> FileTexts | HubTexts:
    """The documents of local files and folders, or of one data set on the hub.

    Arguments:
        sources: files (.txt, .jsonl, either of them .gz, .parquet), folders of such, or one hub id.
        config: configuration of the hub's data set, such as 20231101.en.
        revision: its commit. It must be given, so that the same text can be read again.
        split: of the hub's data set.
        field: what holds a document, in .jsonl and .parquet files and on the hub.

    Raises:
        TextError: a file does not exist, or a hub id has no revision.
    """
    missing = [source for source in sources if not Path(source).exists()]
    if not missing:
        return FileTexts(_files(sources), field)
    if len(sources) > 1 or not _HUB_NAME.fullmatch(str(missing[0])) or _kind(Path(missing[0])) in _READERS:
        raise TextError(f"texts: {missing[0]} is not a file, a folder or a data set on the hub")
    if revision is None:
        raise TextError(
            f"texts: {missing[0]} is not a file or folder here, and a data set on the hub needs its revision "
            "(--texts-revision COMMIT), so that the same text can be read again"
        )
    return HubTexts(str(missing[0]), config, revision, split, field)


@dataclass(frozen=True)
class FileTexts:
    """Documents of files, one file after the other.

    In a .txt file (and one of any other name) each line is a document. A null in a .jsonl or .parquet file is an
    empty document.
    """

    paths: tuple[Path, ...]
    field: str = "text"

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            try:
                yield from _READERS.get(_kind(path), _text_documents)(path, self.field)
            except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
                raise TextError(f"{path}: cannot be read ({_first_line(error)}); get it again") from None


@dataclass(frozen=True)
class HubTexts:
    """Documents of a data set on the hub, streamed: nothing but what is read is downloaded."""

    name: str
    config: str | None
    revision: str | None
    split: str = "train"
    field: str = "text"

    def __iter__(self) -> Iterator[str]:
        from datasets import load_dataset

        records = self._guarded(
            lambda: iter(load_dataset(self.name, self.config, split=self.split, revision=self.revision, streaming=True))
        )
        number = 0
        while (record := self._guarded(lambda: next(records, None), after=number)) is not None:
            number += 1
            yield _document(record, self.field, f"{self.name}: record {number}")

    def _guarded(self, call: Callable, after: int = 0):
        try:
            return call()
        except Exception as error:  # those of datasets, huggingface_hub, fsspec, pyarrow and the HTTP client
            where = f" after {after} records" if after else ""
            problem = f"cannot be read from the hub{where} ({type(error).__name__}: {_first_line(error)})"
            advice = "check the name, --texts-config, --texts-revision, --texts-split and the network, and start again"
            raise TextError(f"{self.name}: {problem}; {advice}") from None


def _files(sources: Iterable[str | os.PathLike]) -> tuple[Path, ...]:
    """Files as they are given; those of a folder by name, in all its folders."""
    found: list[Path] = []
    for source in map(Path, sources):
        if not source.is_dir():
            found.append(source)
            continue
        inside = sorted(path for path in source.rglob("*") if path.is_file() and _kind(path) in _READERS)
        if not inside:
            raise TextError(f"texts: {source} holds no {', '.join(_READERS)} file (nor such a file with .gz)")
        found += inside
    return tuple(found)


def _kind(path: Path) -> str:
    """The ending that tells the format."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield line.rstrip("\n")


def _text_documents(path: Path, field: str) -> Iterator[str]:
    return _lines(path)


def _json_documents(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise TextError(f"{path}: line {number} is not JSON ({error.msg}); mend it") from None
            yield _document(record, field, f"{path}: line {number}")


def _parquet_documents(path: Path, field: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise TextError(f"{path}: {_no_field(field, file.schema_arrow.names)}")
            records = (
                record for batch in file.iter_batches(_BATCH_ROWS, columns=[field]) for record in batch.to_pylist()
            )
            for row, record in enumerate(records, 1):
                yield _document(record, field, f"{path}: row {row}")
    except ArrowException as error:
        raise TextError(f"{path}: cannot be read ({_first_line(error)}); get it again") from None


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _text_documents,
    ".jsonl": _json_documents,
    ".parquet": _parquet_documents,
}


def _document(record: object, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        raise TextError(f"{where}: {_no_field(field, record if isinstance(record, dict) else [])}")
    text = record[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TextError(f"{where}: {field} is {type(text).__name__}, not text; name another field (--texts-field)")
    return text


def _no_field(field: str, there: Iterable[str]) -> str:
    return f"has no field {field!r}, but {', '.join(there) or 'none'}; name it with --texts-field"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
