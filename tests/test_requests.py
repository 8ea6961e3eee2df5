import csv
import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from request_records import FLAT, OWN, ROME, ZSRE, written

from coachhook.requests import (
    EditRequest,
    Probe,
    RequestError,
    mark_superseded,
    read_requests,
    write_refused,
    write_requests,
)


def test_texts_are_filled_in_and_stray_braces_kept():
    request = EditRequest("Ada", "{} {born} } in", "Paris", paraphrases=["Of {}", "Where { Ada", "There"])
    assert request.text == "Ada {born} } in"
    assert request.paraphrase_texts == ("Of Ada", "Where { Ada", "There")
    assert hash(request)
    assert not hasattr(request, "__dict__")


@pytest.mark.parametrize(
    ("prompt", "text", "span"),
    [
        ("Adam met {}", "Adam met Ada", (9, 12)),  # where the template's "{}" was
        ("Adam met Ada", "Adam met Ada", (9, 12)),  # a whole word before a part of one
        ("{} is", "ada met Ada", (8, 11)),  # exactly before another case
        ("{} is", "who is ADA", (7, 10)),
        ("{} is", "the Adas", (4, 7)),
    ],
)
def test_subject_span(prompt, text, span):
    request = EditRequest("Ada", prompt, "Paris")
    assert request.subject_span(text) == span
    with pytest.raises(RequestError, match="does not stand in 'nobody'"):
        request.subject_span("nobody")


def test_targets_lose_their_leading_space():
    request = EditRequest("Ada", "{} is", " Paris", target_true="  London", locality=[Probe("x", " y")])
    assert (request.target_new, request.target_true, request.locality[0].answer) == ("Paris", "London", "y")


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"subject": ""}, "subject", "it is empty"),
        ({"subject": None}, "subject", "None is not text"),
        ({"prompt": "She was born in"}, "prompt", "the subject 'Ada Lovelace' does not stand in"),
        ({"prompt": "{} and {}"}, "prompt", 'more than one "{}"'),
        ({"prompt": 3}, "prompt", "3 is not text"),
        ({"target_new": "  "}, "target_new", "it is empty"),
        ({"target_new": ["Paris"]}, "target_new", "['Paris'] is not text"),
        ({"target_new": " London "}, "target_new", "already the true answer"),
        ({"target_true": 5}, "target_true", "5 is not text"),
        ({"paraphrases": "one text"}, "paraphrases", "'one text' is not a list"),
        ({"paraphrases": ["{} {}"]}, "paraphrases", 'more than one "{}"'),
        ({"paraphrases": [""]}, "paraphrases", "it is empty"),
        ({"paraphrases": [True]}, "paraphrases", "True is not text"),
        ({"locality": 1}, "locality", "1 is not a list"),
        ({"case_id": [1]}, "case_id", "neither a number nor text"),
        ({"relation": 5}, "relation", "5 is not text"),
        ({"superseded": "no"}, "superseded", "neither true nor false"),
    ],
)
def test_a_bad_request_is_refused_where_made_and_where_read(tmp_path, change, field, problem):
    with pytest.raises(RequestError) as made:
        EditRequest(**{**OWN, **change})
    path = written(tmp_path, [OWN, {**OWN, "case_id": 17, **change}])
    with pytest.raises(RequestError) as read:
        read_requests(path)
    for error, place in ((made, ""), (read, f"{path}: record 2")):
        line = str(error.value)
        assert line.startswith(place)
        assert f"{field}: " in line
        assert problem in line
        assert "\n" not in line
    assert "case_id" in change or "(case_id 17)" in str(read.value)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({**OWN, "paraphrase": "x"}, "paraphrase: the key is unknown; use subject, prompt,"),
        ({"prompt": "{} is", "target_new": "x"}, "subject: it is missing"),
        ({"subject": "Ada", "prompt": "{} is"}, "target_new: it is missing"),
        ({"name": "Ada"}, "the keys ['name'] fit no known format"),
        ("text", "'text' is not an object"),
        ({**OWN, "locality": ["text"]}, "locality: 'text' is not an object"),
        ({**OWN, "locality": [{"prompt": "x"}]}, "locality answer: it is missing"),
        ({**OWN, "locality": [{"prompt": "x", "answer": ""}]}, "locality answer: it is empty"),
        ({**OWN, "locality": [{"prompt": "x", "answer": "y", "kind": "z"}]}, "locality kind: 'z' is unknown"),
        ({**OWN, "locality": [{"prompt": "x", "answer": "y", "a": 1}]}, "locality a: the key is unknown"),
        ({**FLAT, "locality_ground_truth": None}, "locality answer: None is not text"),
        ({**FLAT, "prompt": "nobody"}, "(case_id 7): prompt: the subject"),
        ({**ROME, "requested_rewrite": []}, "requested_rewrite: [] is not an object"),
        ({"requested_rewrite": {"target_new": "x"}}, "requested_rewrite.target_new: 'x' is not an object"),
        ({**ROME, "paraphrase_prompts": "x"}, "paraphrase_prompts: 'x' is not a list"),
        ({**ZSRE, "alt": ""}, "target_new: it is empty"),
        ({**ZSRE, "alt": " England"}, "alt: ' England' is already a true answer"),
        ({**ZSRE, "answers": []}, "answers: it is empty"),
        ({**ZSRE, "answers": "London"}, "answers: 'London' is not a list"),
        ({**ZSRE, "loc": 4}, "loc: 4 is not text"),
    ],
)
def test_a_bad_record_is_refused_or_listed(tmp_path, record, words):
    path = written(tmp_path, [OWN, record, FLAT])
    with pytest.raises(RequestError) as error:
        read_requests(path)
    assert str(error.value).startswith(f"{path}: record 2")
    assert words in str(error.value)
    refused = []
    assert [request.case_id for request in read_requests(path, refused=refused)] == [None, 7]
    assert [str(entry) for entry in refused] == [str(error.value)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        (json.dumps([OWN, OWN])[:-30], "no valid JSON at line 1, column"),
        (json.dumps([OWN], indent=1)[:-30], "no valid JSON at line 6, column"),
        (json.dumps(OWN) + "\n" + json.dumps(OWN)[:-4], "no valid JSON at line 2, column"),
        (json.dumps("text"), "not a list; put the requests between [ and ]"),
        ("3", "it holds 3, not a list"),
    ],
)
def test_an_unreadable_file_is_refused_even_with_a_list(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(RequestError) as error:
        read_requests(path, refused=[])
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_bytes_are_refused(tmp_path):
    path = tmp_path / "requests.json.gz"
    path.write_bytes(gzip.compress(json.dumps([OWN]).encode())[:-12])
    with pytest.raises(RequestError, match="damaged or cut short"):
        read_requests(path)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(RequestError, match=r"not UTF-8 text \(byte 2\)"):
        read_requests(path)


def test_flat_rome_and_zsre_records_become_the_same_request(tmp_path):
    flat, rome, zsre = read_requests(written(tmp_path, [FLAT, ROME, ZSRE]))
    for request in (flat, rome, zsre):
        assert (request.subject, request.target_new, request.target_true) == (
            "Ada Lovelace",
            "Paris",
            "London",
        )
    assert flat.text == rome.text == "Ada Lovelace was born in"
    assert rome.relation == "P19"
    assert flat.locality == rome.locality == (Probe("Alan Turing was born in", "London"),)
    assert rome.paraphrase_texts == ("A {stray brace. Ada Lovelace comes\nfrom",)
    assert zsre.locality == (Probe("who sang it", "Nina Simone"),)
    assert [request.case_id for request in (flat, rome, zsre)] == [7, 3, None]


def test_zsre_target_is_a_choice(tmp_path):
    path = written(tmp_path, [ZSRE])
    (request,) = read_requests(path, zsre_target="answers")
    assert (request.target_new, request.target_true) == ("London", None)
    with pytest.raises(ValueError, match="zsre_target is 'false'"):
        read_requests(path, zsre_target="false")


def test_json_lines_and_gzip(tmp_path):
    lines = "".join(json.dumps(record) + "\n" for record in (FLAT, OWN))
    expected = read_requests(written(tmp_path, [FLAT, OWN]))
    assert read_requests(written(tmp_path, "\ufeff" + lines + "\n", "lines.json")) == expected
    assert read_requests(written(tmp_path, json.dumps(FLAT), "one.jsonl")) == expected[:1]
    packed = tmp_path / "packed.json"
    packed.write_bytes(gzip.compress(lines.encode()))
    assert read_requests(packed) == expected


texts = st.text(min_size=1).filter(str.strip)


@given(texts, texts, texts, st.none() | st.integers() | st.text(), st.booleans())
def test_written_requests_are_read_back(tmp_path_factory, subject, prompt, target, case_id, superseded):
    path = tmp_path_factory.mktemp("written") / "requests.json"
    request = EditRequest(
        subject=subject,
        prompt=prompt.replace("{}", "") + "{}",
        target_new=target,
        paraphrases=(prompt.replace("{}", "") or "x",) if prompt.replace("{}", "").strip() else (),
        locality=(Probe(prompt, target, "same_subject"),),
        case_id=case_id,
        superseded=superseded,
    )
    write_requests([request, request], path)
    assert read_requests(path) == [request, request]
    assert [entry.name for entry in path.parent.iterdir()] == ["requests.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = written(tmp_path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_requests([EditRequest("Ada", "{} is", "\ud800")], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_refused_records_are_written_with_the_reason(tmp_path):
    path, refused = written(tmp_path, [{**FLAT, "prompt": "She, \n who?"}, OWN, "x", {**OWN, "\ud800": 1}]), []
    read_requests(path, refused=refused)
    write_refused(refused, tmp_path / "refused.csv")
    with (tmp_path / "refused.csv").open(newline="", encoding="utf-8") as table:
        header, first, *others = csv.reader(table)
    assert header == ["record", "case_id", "field", "problem", "file"]
    assert first == ["1", "7", "prompt", refused[0].problem, str(path)]
    assert "does not stand in 'She, \\n who?'" in refused[0].problem
    assert [row[:3] for row in others] == [["3", "", ""], ["4", "", "\\ud800"]]
    write_refused([], tmp_path / "refused.csv")
    assert (tmp_path / "refused.csv").read_text() == "record,case_id,field,problem,file\n"


@given(st.text("aB_é1 -İ", min_size=1), st.text("aB_é1 -İ"))
def test_subjects_are_found_as_whole_words_first(subject, text):
    """The literal search: exactly before another case, a whole word before a part of one."""
    patterns = [rf"(?<!\w){re.escape(subject)}(?!\w)", re.escape(subject)]
    found = (re.search(pattern, text, flags) for flags in (re.NOFLAG, re.IGNORECASE) for pattern in patterns)
    expected = next((match.span() for match in found if match), None)
    request = EditRequest(subject if subject.strip() else "x", "{}", "y")
    try:
        assert request.subject_span(text) == expected or not subject.strip() or text == subject
    except RequestError:
        assert expected is None or not subject.strip()


def test_superseded_requests_are_marked():
    def request(subject, target, prompt="{} was born in", **fields):
        return EditRequest(subject, prompt, target, **fields)

    stream = [
        request("Ada", "Paris"),  # contradicted by the third
        request("Alan", "Paris"),
        request("Ada", "Rome"),
        request("Ada", "Rome", "Ada was born in"),  # the same prompt and the same target
        request("Bea", "Oslo", relation="P19"),  # contradicted in other words
        request("Bea", "Bonn", "The birthplace of {} is", relation="P19"),
        request("Bea", "Kiel", "{} died in", relation="P20"),
        request("Cyd", "Java", target_true="C"),  # ZsRE: the old answer tells the fact
        request("Cyd", "Rust", "In what is {} written?", target_true="C"),
    ]
    marked = mark_superseded(stream)
    assert [entry.superseded for entry in marked] == [True, *[False] * 3, True, *[False] * 2, True, False]
    assert [entry.prompt for entry in marked] == [entry.prompt for entry in stream]
