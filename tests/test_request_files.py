import gzip
import json

import pytest
from request_records import FLAT, KNOWEDIT, LISTS, MEMIT, MQUAKE, OWN, ROME, ZSRE, real, written

from coachhook.requests import RequestError, read_requests


@pytest.fixture
def expected(tmp_path):
    return read_requests(written(tmp_path, [FLAT, OWN], "expected.json"))


@pytest.mark.parametrize(
    "wrapped",
    [
        {"en": [FLAT, OWN]},
        {"version": 2, "data": [FLAT, OWN]},
        {"data": {"train": [FLAT, OWN]}},
        {"0": FLAT, "17": OWN},
        {"data": {"0": FLAT, "1": OWN}},
        [{"en": FLAT}, {"en": OWN}],
        [{"en": {"en": FLAT}}, OWN],
    ],
)
def test_objects_around_records(tmp_path, expected, wrapped):
    assert read_requests(written(tmp_path, wrapped)) == expected


def test_one_record_is_a_file(tmp_path, expected):
    assert read_requests(written(tmp_path, FLAT)) == expected[:1]
    assert read_requests(written(tmp_path, json.dumps(OWN, indent=1))) == expected[1:]
    assert read_requests(written(tmp_path, {"en": OWN})) == expected[1:]
    assert len(read_requests(written(tmp_path, MQUAKE))) == 2


@pytest.mark.parametrize("content", [[FLAT, OWN], LISTS, [MEMIT], ROME, {"en": [ZSRE]}, [], MQUAKE])
def test_what_would_stand_in_a_file_may_be_given_itself(tmp_path, content):
    assert read_requests(content) == read_requests(written(tmp_path, content))


def test_what_is_wrong_with_given_records_is_named_without_a_file():
    with pytest.raises(RequestError, match=r"^record 2: target_new: it is missing"):
        read_requests([FLAT, {key: value for key, value in OWN.items() if key != "target_new"}])
    refused = []
    assert len(read_requests([FLAT, 7], refused=refused)) == 1
    assert (refused[0].record, refused[0].file) == (2, None)
    with pytest.raises(RequestError, match="7, not a list"):
        read_requests(7)


def test_multi_counterfact_is_romes_schema_with_anything_around_it(tmp_path):
    expected = read_requests(written(tmp_path, [ROME, ROME]))
    assert read_requests(written(tmp_path, {"train": [ROME, ROME]})) == expected
    several = {**ROME, "requested_rewrite": [ROME["requested_rewrite"]] * 2}
    assert read_requests(written(tmp_path, [several])) == expected


def test_the_part_of_several_is_a_choice(tmp_path):
    zh = {**ZSRE, "alt": "巴黎"}
    for wrapped in ([{"en": ZSRE, "zh": zh}], {"en": [ZSRE], "zh": [zh]}, {"en": ZSRE, "zh": zh}):
        path = written(tmp_path, wrapped)
        assert [read_requests(path, part=part)[0].target_new for part in ("en", "zh")] == ["Paris", "巴黎"]
        for options in ({}, {"part": "fr"}):
            with pytest.raises(RequestError, match=r"it has the parts \['en', 'zh'\]; say which one is meant"):
                read_requests(path, **options)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n"])
def test_json_lines_under_any_name(tmp_path, expected, end):
    lines = "".join(json.dumps(record) + end for record in (FLAT, OWN))
    for name in ("lines.json", "lines.jsonl", "lines.txt"):
        path = tmp_path / name
        path.write_bytes(lines.encode("utf-8-sig"))
        assert read_requests(path) == expected
        path.write_bytes(gzip.compress(lines.encode()))
        assert read_requests(path) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[" + "9" * 10_000 + "]", "it holds what cannot be read"),
        ("{}", "the keys [] fit no known format"),
        ({"name": "Ada"}, "the keys ['name'] fit no known format"),
        ({"data": "text"}, "the keys ['data'] fit no known format"),
        ({**LISTS, "prompts": []}, "prompts: it is empty"),
        ({**LISTS, "subject": ["Ada"]}, "subject: it has 1 entries for 2 prompts; give one for each"),
        ("null", "it holds None, not a list"),
    ],
)
def test_an_unreadable_file_is_refused_even_with_a_list(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(RequestError) as error:
        read_requests(path, refused=[])
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_each_record_of_keyword_lists_is_refused_by_itself(tmp_path):
    refused = []
    path = written(tmp_path, {**LISTS, "target_new": ["London", "Oslo"]})
    assert [request.subject for request in read_requests(path, refused=refused)] == ["Bea"]
    assert [(error.record, error.field) for error in refused] == [(1, "target_new")]


def test_a_deep_record_is_refused_by_itself(tmp_path):
    deep = "[" * 900 + "]" * 900
    text = f'[{json.dumps(OWN)}, {{"subject": {deep}, "prompt": "x", "target_new": "y"}}]'
    try:
        json.loads(text)
    except RecursionError:
        pytest.skip("this Python reads no such nesting")
    refused = []
    assert len(read_requests(written(tmp_path, text), refused=refused)) == 1
    assert refused[0].record == 2


def test_real_records_in_any_container(tmp_path):
    records = json.loads(real("knowedit-zsre.json").read_text())
    expected = read_requests(real("knowedit-zsre.json"), refused=[])
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    assert read_requests(written(tmp_path, lines), refused=[]) == expected
    assert read_requests(written(tmp_path, {"en": records}), refused=[]) == expected
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(lines.encode()))
    assert read_requests(packed, refused=[]) == expected
    assert KNOWEDIT.keys() <= records[0].keys()
