"""The records of a request file: JSON (an array, lines or an object around them, gzip or not) or Parquet."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from coachhook.edit_request import RequestError, quoted
from coachhook.keyword_lists import is_keyword_lists, split_lists
from coachhook.request_formats import find_format, inside


def read_records(path: Path, part: str | None = None) -> list:
    """The records of a file, in order, whatever they are; RequestError where the file as a whole cannot be read.

    part: which language, split or other part is read where an object holds several.
    """
    if _starts_as_parquet(path):
        return _read_parquet(path)
    text = _read_text(path)
    content = _read_lines(text, path)
    if content is None:
        content = _load(text, path)
    return records_of(content, part, path)


def records_of(content: object, part: str | None = None, path: Path | None = None) -> list:
    """The records of what a file holds, or of the same as Python's lists and dictionaries; RequestError as above."""
    try:
        while isinstance(content, dict) and find_format(content) is None:
            content = inside(content, part)
        if isinstance(content, dict):
            return split_lists(content) if is_keyword_lists(content) else [content]
    except RequestError as error:
        raise RequestError(error.problem, error.field, file=path) from None
    if not isinstance(content, list):
        problem = f"it holds {quoted(content)}, not a list; put the requests between [ and ]"
        raise RequestError(problem, file=path)
    return content


def _starts_as_parquet(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _read_parquet(path: Path) -> list[dict]:
    """One record per row, as the hub stores many data sets."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        problem = f"the Parquet data is damaged or cut short ({str(error).splitlines()[0]}); fetch it again"
        raise RequestError(problem, file=path) from None


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RequestError(f"the gzip data is damaged or cut short ({error}); fetch it again", file=path) from None
    except UnicodeDecodeError as error:
        raise RequestError(f"it is not UTF-8 text (byte {error.start}); convert it", file=path) from None
    if not text.strip():
        raise RequestError("the file is empty; write a JSON list of requests", file=path)
    return text


def _read_lines(text: str, path: Path) -> list | None:
    """The records of JSON Lines, whatever the file is called; None for other JSON."""
    if not text.lstrip().startswith("{"):
        return None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if (len(lines) == 1 and ".jsonl" not in path.suffixes) or not _is_object(lines[0][1]):
        return None
    return [_load(line, path, number) for number, line in lines]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _load(text: str, path: Path, line: int = 1) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        problem = f"it is no valid JSON at {where} ({error.msg}); correct it, or fetch it again if it is cut short"
    except RecursionError:
        problem = "its lists or objects are nested too deep; put the requests between [ and ]"
    except ValueError as error:  # such as a number of thousands of digits
        problem = f"it holds what cannot be read ({error}); correct it"
    raise RequestError(problem, file=path)
