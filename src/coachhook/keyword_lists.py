"""EasyEdit's keywords: one object of lists, with one entry per request in each, as its `edit` takes them."""

from __future__ import annotations

from coachhook.edit_request import RequestError
from coachhook.json_fields import as_object, required

_COLUMNS = {  # keyword: what the record of one request calls it
    "prompts": "prompt",
    "target_new": "target_new",
    "ground_truth": "ground_truth",
    "subject": "subject",
    "rephrase_prompts": "rephrase_prompt",
    "locality_prompts": "locality_prompt",
    "locality_ground_truth": "locality_ground_truth",
}
_GROUPS = {"locality_inputs": "locality", "portability_inputs": "portability"}


def is_keyword_lists(record: dict) -> bool:
    return "prompts" in record


def split_lists(lists: dict) -> list[dict]:
    """One record per request; a single text stands for a list of one, and null for nothing.

    Raises RequestError for a list that has not one entry per prompt.
    """
    count = len(lists["prompts"]) if isinstance(lists["prompts"], list) else 1
    columns = {ours: _column(lists.get(theirs), count, theirs) for theirs, ours in _COLUMNS.items()}
    records = [_present(columns, i) for i in range(count)]
    for theirs, ours in _GROUPS.items():
        for group, entry in as_object(lists.get(theirs) or {}, theirs).items():
            where = f"{theirs}.{group}"
            entry = as_object(entry, where)
            probes = {
                key: _column(required(entry, key, f"{where}."), count, where) for key in ("prompt", "ground_truth")
            }
            for i, record in enumerate(records):
                record.setdefault(ours, {})[group] = {key: column[i] for key, column in probes.items()}
    return records


def _column(value: object, count: int, field: str) -> list:
    column = value if isinstance(value, list) else [value] * (count if value is None else 1)
    if len(column) != count:
        raise RequestError(f"it has {len(column)} entries for {count} prompts; give one for each", field)
    return column


def _present(columns: dict[str, list], i: int) -> dict:
    return {key: column[i] for key, column in columns.items() if column[i] is not None}
