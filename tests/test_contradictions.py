from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coachhook.contradictions import POLICIES, contradiction_counts, resolve_contradictions
from coachhook.edit_request import fact_keys
from coachhook.requests import EditRequest, RequestError, mark_superseded, read_requests

REAL = Path(__file__).parents[2] / "shared" / "data"
NUMBERED = list(range(7))


def born(subject, target, prompt="{} was born in", case_id=None, **fields):
    return EditRequest(subject, prompt, target, case_id=case_id, **fields)


STREAM = [
    born("Ada", "Paris", case_id=0),
    born("Alan", "Paris", case_id=1),
    born("Ada", "Rome", case_id=2),
    born("Ada", "Rome", "Ada was born in", case_id=3),
    born("Bea", "Oslo", relation="P19", case_id=4),
    born("Ada", "Paris", case_id=5),
    born("Bea", "Bonn", "The birthplace of {} is", relation="P19", case_id=6),
]


def contradict(one, other):
    return one.target_new.strip() != other.target_new.strip() and not set(fact_keys(one)).isdisjoint(fact_keys(other))


def literal_marks(requests):
    return [any(contradict(request, later) for later in requests[i + 1 :]) for i, request in enumerate(requests)]


@pytest.mark.parametrize(
    ("policy", "kept", "superseded"),
    [("keep", NUMBERED, [0, 2, 3, 4]), ("first", [0, 1, 4, 5], []), ("last", [1, 5, 6], [])],
)
def test_policies(policy, kept, superseded):
    for stream in (STREAM, mark_superseded(STREAM), iter(STREAM)):
        resolved = resolve_contradictions(stream, policy)
        assert [request.case_id for request in resolved] == kept
        assert [request.case_id for request in resolved if request.superseded] == superseded


def test_error_names_both_records():
    with pytest.raises(RequestError) as error:
        resolve_contradictions(STREAM, "error")
    line = str(error.value)
    assert line.startswith("record 3 (case_id 2): target_new: 'Rome' contradicts 'Paris' of record 1 (case_id 0)")
    assert "policy keep, first or last" in line
    assert "\n" not in line
    assert (error.value.record, error.value.case_id) == (3, 2)
    assert resolve_contradictions(STREAM[:2], "error") == STREAM[:2]


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="'newest' is unknown; use one of keep, first, last, error"):
        resolve_contradictions(STREAM, "newest")


def test_marks_of_a_longer_stream_do_not_stay():
    marked = mark_superseded(STREAM)
    assert [request.superseded for request in mark_superseded(marked[:2])] == [False, False]


requests = st.builds(
    born,
    st.sampled_from(["Ada", "Bea"]),
    st.sampled_from(["Paris", "Rome ", "Rome", "Oslo"]),
    st.sampled_from(["{} was born in", "Where is {} from?"]),
    relation=st.sampled_from([None, "P19", "P20"]),
    target_true=st.sampled_from([None, "Bonn", "Kiel"]),
    superseded=st.booleans(),
)


@settings(derandomize=True, deadline=None)
@given(st.lists(requests, max_size=12))
def test_marks_counts_and_policies_are_the_literal_ones(stream):
    assert [request.superseded for request in mark_superseded(stream)] == literal_marks(stream)
    expected = [{"edits": n, "superseded": sum(literal_marks(stream[:n]))} for n in range(1, len(stream) + 1)]
    assert contradiction_counts(stream) == expected
    first = []
    for request in stream:
        if not any(contradict(request, earlier) for earlier in first):
            first.append(replace(request, superseded=False))
    assert resolve_contradictions(stream, "first") == first
    for policy in ("first", "last"):
        resolved = resolve_contradictions(stream, policy)
        assert not any(request.superseded for request in mark_superseded(resolved))
        assert resolve_contradictions(resolved, "error") == resolved
    if any(literal_marks(stream)):
        with pytest.raises(RequestError):
            resolve_contradictions(stream, "error")


def test_real_zsre_contradicts_itself():
    path = REAL / "zsre_mend_eval.json"
    if not path.exists():
        pytest.skip("zsre_mend_eval.json is not beside this checkout (shared/data)")
    requests = read_requests(path, refused=[])
    kept = {policy: len(resolve_contradictions(requests, policy)) for policy in POLICIES if policy != "error"}
    assert contradiction_counts(requests)[-1] == {"edits": 679, "superseded": 166}
    assert (kept["keep"], kept["last"]) == (679, 679 - 166)
    assert kept["first"] < 679
