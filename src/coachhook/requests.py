"""Reading and writing edit requests, in every file format the field keeps them in (`request_formats`).

`EditRequest`, `Probe`, `RequestError` and `mark_superseded` are defined in `edit_request` and offered here.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from coachhook.edit_request import EditRequest, Probe, RequestError, mark_superseded
from coachhook.logs import logger
from coachhook.request_files import read_records, records_of
from coachhook.request_formats import Reading, parse
from coachhook.whole_files import write_bytes, write_text

__all__ = [
    "EditRequest",
    "Probe",
    "RequestError",
    "mark_superseded",
    "read_requests",
    "write_refused",
    "write_requests",
]

_REFUSED_COLUMNS = ("record", "case_id", "field", "problem", "file")


def write_requests(requests: Iterable[EditRequest], path: str | os.PathLike) -> None:
    """Write requests as a JSON array of our own schema (the fields of EditRequest), whole or not at all."""
    write_text(path, json.dumps([asdict(request) for request in requests], ensure_ascii=False, indent=1) + "\n")


def write_refused(refused: Iterable[RequestError], path: str | os.PathLike) -> None:
    """Write why records were refused as CSV, one row each: record (from 1), case_id, field, problem, file."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_REFUSED_COLUMNS)
    table.writerows([getattr(error, column) for column in _REFUSED_COLUMNS] for error in refused)
    write_bytes(path, text.getvalue().encode(errors="backslashreplace"))  # a key may hold half of a character


def read_requests(
    path: str | os.PathLike | dict | list[dict],
    zsre_target: str = "alt",
    refused: list[RequestError] | None = None,
    part: str | None = None,
) -> list[EditRequest]:
    """Read the requests of a JSON array, JSON Lines or an object around them, gzip or not, in a format known from
    its content: our own schema, CounterFact (ROME, EasyEdit), ZsRE (MEND, EasyEdit), KnowEdit, MQuAKE (one request
    per rewrite), the request dicts of ROME and MEMIT, EasyEdit's keyword lists.

    path: a file, or what would stand in one: a list of dictionaries, or EasyEdit's dictionary of lists.
    zsre_target: what ZsRE records are edited to, "alt" (the false answer, as EasyEdit does) or "answers" (the
    first true one, as ROME does; then there is no target_true). part: which language, split or other part is read
    where an object holds several. The first bad record raises RequestError; given a list `refused`, its error is
    appended there instead, and reading goes on. An unreadable file always raises. Of several right answers the
    first is taken; probes without any are left out, and the log says how many.
    """
    if zsre_target not in ("alt", "answers"):
        raise ValueError(f'zsre_target is {zsre_target!r}; use "alt" or "answers"')
    given = not isinstance(path, str | os.PathLike)
    records = records_of(path, part) if given else read_records(Path(path), part)
    path, reading = None if given else Path(path), Reading(zsre_target, part)
    requests: list[EditRequest] = []
    errors: list[RequestError] = []
    for position, record in enumerate(records, start=1):
        try:
            requests += _parse(record, reading)
        except RequestError as error:
            case_id = record.get("case_id") if isinstance(record, dict) else None
            case_id = case_id if isinstance(case_id, int | str) else error.case_id
            errors.append(RequestError(error.problem, error.field, case_id, position, path))
            if refused is None:
                raise errors[0] from None
    if refused is not None:
        refused += errors
        logger.info("%s: %d of %d records refused", path or "requests", len(errors), len(records))
    if reading.probes_left_out:
        told = "%s: %d probes left out, as no answer to them is given"
        logger.info(told, path or "requests", reading.probes_left_out)
    return requests


def _parse(record: object, reading: Reading) -> list[EditRequest]:
    try:
        requests = parse(record, reading)
    except RecursionError:
        raise RequestError("it is nested too deep; write the fields of EditRequest") from None
    for request in requests:
        _refuse_half_characters(request)
    return requests


def _refuse_half_characters(request: EditRequest):
    """JSON may escape half of a character (a lone surrogate); no tokenizer takes it, and no file."""
    probes = [text for probe in (*request.locality, *request.portability) for text in (probe.prompt, probe.answer)]
    labels = (request.case_id, request.relation, request.target_true)
    texts = [request.subject, request.prompt, request.target_new, *request.paraphrases, *probes, *map(str, labels)]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RequestError(f"{half!r} is half of a character; correct the record, or fetch the file again") from None
