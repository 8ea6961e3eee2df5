"""Values of a JSON record, held to the type that they must have; a mistake is a RequestError that names the field."""

from __future__ import annotations

from coachhook.edit_request import RequestError, quoted


def required(record: dict, key: str, inside: str = "") -> object:
    if key not in record:
        raise RequestError("it is missing; add it", f"{inside}{key}")
    return record[key]


def as_object(value: object, field: str) -> dict:
    if not isinstance(value, dict):
        raise RequestError(f"{quoted(value)} is not an object", field)
    return value


def as_list(value: object, field: str) -> list:
    if not isinstance(value, list):
        raise RequestError(f"{quoted(value)} is not a list", field)
    return value


def answers(value: object, field: str) -> list[str]:
    """All answers, in order, of what KnowEdit calls a ground truth: a text, a list, or a list of lists of aliases.

    Empty ones and null are none.
    """
    if isinstance(value, list):
        return [answer for entry in value for answer in answers(entry, field)]
    if value is None:
        return []
    if not isinstance(value, str):
        raise RequestError(f"{quoted(value)} is not text; give an answer, or a list of its names", field)
    return [value] if value.strip() else []
