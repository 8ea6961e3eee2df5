"""Reading and writing edit requests, in every file format the field keeps them in.

`read_requests` knows a file's format from its content; a further format is one parse function and one line in
`_FORMATS`. `EditRequest`, `Probe` and `RequestError` are defined in `edit_request` and offered here.
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path

from coachhook.edit_request import PORTABILITY, EditRequest, Probe, RequestError, checked_text, mark_superseded, quoted

__all__ = ["EditRequest", "Probe", "RequestError", "mark_superseded", "read_requests", "write_requests"]

_NATURAL_QUESTIONS = "nq question: "  # MEND marks every locality question so; it is no part of the question


def write_requests(requests: Iterable[EditRequest], path: str | os.PathLike) -> None:
    """Write requests as a JSON array of our own schema (the fields of EditRequest), whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    text = json.dumps([asdict(request) for request in requests], ensure_ascii=False, indent=1)
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_requests(
    path: str | os.PathLike, zsre_target: str = "alt", refused: list[RequestError] | None = None
) -> list[EditRequest]:
    """Read the requests of a JSON array or JSON Lines file, gzip or not, in a format known from its content:
    our own schema, flat CounterFact (EasyEdit), CounterFact (ROME) or ZsRE (MEND).

    zsre_target: what ZsRE records are edited to, "alt" (the false answer, as EasyEdit does) or "answers" (the
    first true one, as ROME does; then there is no target_true). The first bad record raises RequestError;
    given a list `refused`, its error is appended there instead, and reading goes on. An unreadable file
    always raises.
    """
    if zsre_target not in ("alt", "answers"):
        raise ValueError(f'zsre_target is {zsre_target!r}; use "alt" or "answers"')
    requests = []
    for position, record in enumerate(_read_records(Path(path)), start=1):
        try:
            requests.append(_parse(record, zsre_target))
        except RequestError as error:
            case_id = record.get("case_id") if isinstance(record, dict) else None
            case_id = case_id if isinstance(case_id, int | str) else None
            located = RequestError(error.problem, error.field, case_id, position, path)
            if refused is None:
                raise located from None
            refused.append(located)
    return requests


def _read_records(path: Path) -> list:
    """The JSON records of a file; RequestError where the file as a whole cannot be read."""
    content = path.read_bytes()
    try:
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RequestError(f"the gzip data is damaged or cut short ({error}); fetch it again", file=path) from None
    except UnicodeDecodeError as error:
        raise RequestError(f"it is not UTF-8 text (byte {error.start}); convert it", file=path) from None
    if not text.strip():
        raise RequestError("the file is empty; write a JSON list of requests", file=path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if text.lstrip().startswith("{") and (len(lines) > 1 or ".jsonl" in path.suffixes) and _is_object(lines[0][1]):
        return [_load(line, path, number) for number, line in lines]
    records = _load(text, path)
    if not isinstance(records, list):
        problem = f"it holds {quoted(records)}, not a list; put the requests between [ and ]"
        raise RequestError(problem, file=path)
    return records


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _load(text: str, path: Path, line: int = 1):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        problem = f"it is no valid JSON at {where} ({error.msg}); correct it, or fetch it again if it is cut short"
        raise RequestError(problem, file=path) from None


def _parse(record: object, zsre_target: str) -> EditRequest:
    if not isinstance(record, dict):
        raise RequestError(f"{quoted(record)} is not an object; write {{'subject': ..., 'prompt': ..., ...}}")
    for recognises, parse in _FORMATS:
        if recognises(record):
            return parse(record, zsre_target)
    raise RequestError(f"the keys {quoted(sorted(record))} fit no known format; see EditRequest for ours")


def _get(record: dict, key: str, inside: str = ""):
    if key not in record:
        raise RequestError("it is missing; add it", f"{inside}{key}")
    return record[key]


def _object(value: object, field: str) -> dict:
    if not isinstance(value, dict):
        raise RequestError(f"{quoted(value)} is not an object", field)
    return value


def _list(value: object, field: str) -> list:
    if not isinstance(value, list):
        raise RequestError(f"{quoted(value)} is not a list", field)
    return value


def _refuse_unknown(record: dict, cls: type, field: str = ""):
    known = [entry.name for entry in fields(cls)]
    for key in record:
        if key not in known:
            raise RequestError(f"the key is unknown; use {', '.join(known)}", f"{field}{key}")


def _parse_own(record: dict, zsre_target: str) -> EditRequest:
    _refuse_unknown(record, EditRequest)
    for key in ("subject", "prompt", "target_new"):
        _get(record, key)
    probes = {}
    for field, kind in (("locality", {}), (PORTABILITY, {"kind": PORTABILITY})):
        probes[field] = []
        for probe in _list(record.get(field, []), field):
            _refuse_unknown(_object(probe, field), Probe, f"{field} ")
            for key in ("prompt", "answer"):
                _get(probe, key, f"{field} ")
            probes[field].append(Probe(**{**kind, **probe}))
    return EditRequest(**{**record, **probes})


def _parse_flat(record: dict, zsre_target: str) -> EditRequest:
    locality = ()
    if record.get("locality_prompt"):
        locality = (Probe(record["locality_prompt"], _get(record, "locality_ground_truth")),)
    return EditRequest(
        subject=_get(record, "subject"),
        prompt=_get(record, "prompt"),
        target_new=_get(record, "target_new"),
        target_true=record.get("ground_truth"),
        paraphrases=(record["rephrase_prompt"],) if record.get("rephrase_prompt") else (),
        locality=locality,
        case_id=record.get("case_id"),
    )


def _parse_rome(record: dict, zsre_target: str) -> EditRequest:
    inside = "requested_rewrite."
    rewrite = _object(record["requested_rewrite"], "requested_rewrite")
    targets = {}
    for key in ("target_new", "target_true"):
        targets[key] = _get(_object(_get(rewrite, key, inside), inside + key), "str", f"{inside}{key}.")
    neighbours = _list(record.get("neighborhood_prompts", []), "neighborhood_prompts")
    return EditRequest(
        subject=_get(rewrite, "subject", inside),
        prompt=_get(rewrite, "prompt", inside),
        **targets,
        paraphrases=_list(record.get("paraphrase_prompts", []), "paraphrase_prompts"),
        locality=[Probe(neighbour, targets["target_true"]) for neighbour in neighbours],
        case_id=record.get("case_id"),
        relation=rewrite.get("relation_id"),
    )


def _parse_zsre(record: dict, zsre_target: str) -> EditRequest:
    answers = _list(_get(record, "answers"), "answers")
    if not answers:
        raise RequestError("it is empty; give the true answer", "answers")
    target, true = (_get(record, "alt"), answers[0]) if zsre_target == "alt" else (answers[0], None)
    if zsre_target == "alt" and isinstance(target, str) and target.strip() in [str(a).strip() for a in answers]:
        raise RequestError(f"{quoted(target)} is already a true answer; drop the record or change it", "alt")
    locality = ()
    if record.get("loc"):
        question = checked_text(record["loc"], "loc", "give the unrelated question")
        locality = (Probe(question.removeprefix(_NATURAL_QUESTIONS), _get(record, "loc_ans")),)
    return EditRequest(
        subject=_get(record, "subject"),
        prompt=_get(record, "src"),
        target_new=target,
        target_true=true,
        paraphrases=(record["rephrase"],) if record.get("rephrase") else (),
        locality=locality,
        case_id=record.get("case_id"),
    )


def _is_flat(record: dict) -> bool:
    """Flat CounterFact shares subject, prompt, target_new with our schema; what differs decides."""
    theirs = {"ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth"}
    ours = {"target_true", "paraphrases", "locality", "relation", "superseded"}
    return not theirs.isdisjoint(record) and ours.isdisjoint(record)


_FORMATS: tuple[tuple[Callable[[dict], bool], Callable[[dict, str], EditRequest]], ...] = (
    (lambda record: "requested_rewrite" in record, _parse_rome),
    (lambda record: "src" in record and "prompt" not in record, _parse_zsre),
    (_is_flat, _parse_flat),
    (lambda record: not {"subject", "prompt", "target_new"}.isdisjoint(record), _parse_own),
)
