"""What to do where a stream gives one fact two different targets, and how much of a stream does.

Real ZsRE streams contradict themselves, so no editor can satisfy all their requests. Which requests edit the same
fact: `edit_request.fact_keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from coachhook.edit_request import EditRequest, RequestError, fact_keys, mark_superseded, quoted


def resolve_contradictions(requests: Iterable[EditRequest], policy: str) -> list[EditRequest]:
    """The requests of a stream, in order, with `superseded` marked, after `policy` (a key of `POLICIES`) was applied.

    "keep" drops none. "first" drops a request that contradicts an earlier one, unless that one was dropped itself;
    "last" drops those that a later one contradicts. Of both nothing is superseded in the end. "error" raises
    RequestError at the first contradiction, naming both records. Raises ValueError for an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"the policy {policy!r} is unknown; use one of {', '.join(POLICIES)}")
    return POLICIES[policy](requests)


def contradiction_counts(requests: Iterable[EditRequest]) -> list[dict[str, int]]:
    """One row after each request of a stream: how many `edits` were made, and how many of them are `superseded` now.

    The last row counts what `mark_superseded` marks. Time is linear in the number of requests.
    """
    standing: dict[tuple[str, str, str], tuple[str, list[int]]] = {}
    superseded: set[int] = set()
    rows = []
    for edits, request in enumerate(requests, start=1):
        new = request.target_new.strip()
        for key in fact_keys(request):
            target, earlier = standing.get(key, (new, []))
            if target != new:
                superseded.update(earlier)
                earlier = []
            standing[key] = (new, earlier)
            earlier.append(edits)
        rows.append({"edits": edits, "superseded": len(superseded)})
    return rows


def _drop_superseded(requests: Iterable[EditRequest]) -> list[EditRequest]:
    return [request for request in mark_superseded(requests) if not request.superseded]


def _drop_later(requests: Iterable[EditRequest]) -> list[EditRequest]:
    kept = (request for _, request, contradicted in _compared(requests) if contradicted is None)
    return [replace(request, superseded=False) for request in kept]


def _refuse(requests: Iterable[EditRequest]) -> list[EditRequest]:
    kept = []
    for record, request, contradicted in _compared(requests):
        if contradicted is not None:
            earlier, other = contradicted
            case = f" (case_id {other.case_id})" if other.case_id is not None else ""
            problem = (
                f"{quoted(request.target_new)} contradicts {quoted(other.target_new)} of record {earlier}{case}, "
                f"{quoted(other.text)}; drop one of them, or choose the policy keep, first or last"
            )
            raise RequestError(problem, "target_new", request.case_id, record)
        kept.append(replace(request, superseded=False))
    return kept


def _compared(requests: Iterable[EditRequest]) -> Iterator[tuple[int, EditRequest, tuple[int, EditRequest] | None]]:
    """(record, request, (earlier record, request) that it contradicts): earlier ones that contradict count no more."""
    kept: dict[tuple[str, str, str], tuple[int, EditRequest]] = {}
    for record, request in enumerate(requests, start=1):
        same_fact = [kept[key] for key in fact_keys(request) if key in kept]
        target = request.target_new.strip()
        contradicted = next((earlier for earlier in same_fact if earlier[1].target_new.strip() != target), None)
        if contradicted is None:
            for key in fact_keys(request):
                kept.setdefault(key, (record, request))
        yield record, request, contradicted


POLICIES: dict[str, Callable[[Iterable[EditRequest]], list[EditRequest]]] = {
    "keep": mark_superseded,
    "first": _drop_later,
    "last": _drop_superseded,
    "error": _refuse,
}
