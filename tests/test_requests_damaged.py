"""Damaged records and files of every format end in requests that can be edited, or in one line that says why not."""

import copy
import csv
import gzip
import json
import re
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from request_records import FLAT, KNOWEDIT, LISTS, MQUAKE, OWN, ROME, WIKIBIO, ZSRE

from coachhook.requests import RequestError, read_requests, write_refused

FULL = {**OWN, "paraphrases": ["{} is from"], "locality": [{"prompt": "p", "answer": "a"}], "relation": "P19"}
VARIANT = {**ZSRE, "portability": {"New Question": "q", "New Answer": "a"}, "inverse question": "Who?"}
RECORDS = [OWN, FULL, FLAT, ROME, ZSRE, VARIANT, KNOWEDIT, WIKIBIO, MQUAKE, LISTS, {"en": ZSRE, "zh": ZSRE}]
TEXTS = [
    "",
    " ",
    "{}",
    "{} {}",
    "{0} {x!r:>{y}",
    "}{",
    "Ada",
    "ada lovelace\n",
    "\x00",
    "é\u2028\u202e",
    "\ud800",
    "İ",
    "<|endoftext|>",
]
JUNK = [
    None,
    True,
    False,
    0,
    -1.5,
    float("nan"),
    10**400,
    [],
    {},
    [[]],
    [[[["x"]]]],
    [None],
    [{}],
    {"": {}},
    {"{}": ["{}"]},
]
JUNK += [{"str": "Paris"}, {"prompt": []}, [{"prompt": "p", "ground_truth": [[], [3]]}], {"0": 1}, ["x"] * 3]


def places(value, path=()):
    """The path to everything inside a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def drop(holder, key, draw):
    del holder[key]


def replace(holder, key, draw):
    holder[key] = copy.deepcopy(draw(st.sampled_from(JUNK + TEXTS)))


def insert(holder, key, draw):
    text, stray = str(holder[key]), draw(st.sampled_from(TEXTS))
    where = draw(st.integers(0, len(text)))
    holder[key] = text[:where] + stray + text[where:]


def cut(holder, key, draw):
    holder[key] = str(holder[key])[: draw(st.integers(0, 20))]


def wrap(holder, key, draw):
    holder[key] = draw(st.sampled_from([lambda x: [x], lambda x: {"str": x}, lambda x: [x, x], lambda x: {"0": x}]))(
        holder[key]
    )


def rename(holder, key, draw):
    if isinstance(holder, dict):
        holder[draw(st.sampled_from(["prompt", "prompts", "src", "concept", "7", "", "locality", "\ud800\n"]))] = (
            holder.pop(key)
        )


def trade(holder, key, draw):
    other = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key], holder[other] = holder[other], holder[key]


@st.composite
def damaged(draw):
    record = json.loads(json.dumps(draw(st.sampled_from(RECORDS))))
    for damage in draw(
        st.lists(st.sampled_from([drop, replace, insert, cut, wrap, rename, trade]), min_size=1, max_size=3)
    ):
        if found := list(places(record)):
            *path, key = draw(st.sampled_from(found))
            damage(at(record, path), key, draw)
    return record


def check(path, **options):
    """What is read can be edited and written; what is refused is one line each."""
    refused = []
    try:
        requests = read_requests(path, refused=refused, **options)
    except RequestError as error:
        requests, refused = [], [error]
    for request in requests:
        request.subject_span(request.text)
        json.dumps(asdict(request), ensure_ascii=False).encode()
        assert all(probe.answer.strip() for probe in (*request.locality, *request.portability))
        assert request.target_new == request.target_new.lstrip() != ""
    for error in refused:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
    return requests, refused


def test_damaged_records(tmp_path):
    path, counts, errors = tmp_path / "damaged.json", Counter(), []

    @settings(derandomize=True, deadline=None, max_examples=2000)
    @given(damaged(), st.sampled_from(["alt", "answers"]), st.sampled_from([None, "en"]))
    def one_record(record, target, part):
        path.write_text(json.dumps([record]), encoding="utf-8")
        requests, refused = check(path, zsre_target=target, part=part)
        assert bool(requests) != bool(refused)
        if refused:
            with pytest.raises(RequestError, match=re.escape(str(refused[0]))):
                read_requests(path, zsre_target=target, part=part)
        counts.update(read=bool(requests), refused=bool(refused))
        errors.extend(refused)

    one_record()
    assert counts.total() >= 2000
    assert min(counts.values()) > 400  # both ends are met, and often
    write_refused(errors, tmp_path / "refused.csv")
    with (tmp_path / "refused.csv").open(newline="", encoding="utf-8") as table:
        assert len(list(csv.DictReader(table))) == len(errors)


def test_damaged_files(tmp_path):
    path = tmp_path / "damaged.json"

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.lists(st.sampled_from(RECORDS), min_size=1, max_size=3), st.data())
    def one_file(records, data):
        shapes = [
            json.dumps(records),
            json.dumps({"en": records}),
            "\n".join(map(json.dumps, records)),
            json.dumps(LISTS),
        ]
        content = bytearray(data.draw(st.sampled_from(shapes)).encode())
        if data.draw(st.booleans()):
            content = bytearray(gzip.compress(content, mtime=0))
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
            content[place] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        check(path)

    one_file()
