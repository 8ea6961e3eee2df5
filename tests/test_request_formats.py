import json
from collections import Counter
from dataclasses import replace

import pytest
from request_records import FLAT, KNOWEDIT, LISTS, MEMIT, MQUAKE, OWN, ROME, WIKIBIO, ZSRE, real, written

from coachhook.requests import EditRequest, Probe, RequestError, mark_superseded, read_requests


def only(tmp_path, record, **options):
    (request,) = read_requests(written(tmp_path, [record]), **options)
    return request


def probes(kind, *pairs):
    return tuple(Probe(*pair, kind) for pair in pairs)


def test_knowedit(tmp_path):
    request = only(tmp_path, KNOWEDIT)
    assert (request.subject, request.text) == ("Ada Lovelace", "The place of birth of Ada Lovelace is")
    assert (request.target_new, request.target_true) == ("Paris", "London")
    assert request.paraphrase_texts == ("Where does she come from?",)
    kept = (("The mother of Ada Lovelace is", "Anne Byron"), ("Besides Paris, Ada Lovelace was born in", "London"))
    assert request.locality == probes("same_subject", *kept)
    assert request.portability == probes("portability", ("She was born in the country of", "France"))


@pytest.mark.parametrize("truth", ["London", ["London"], [["London", "City"]], [[], ["", "London"]]])
def test_a_ground_truth_is_a_text_a_list_or_a_list_of_lists(tmp_path, truth):
    probe = {"prompt": "Alan was born in", "ground_truth": truth}
    record = {**KNOWEDIT, "ground_truth": truth, "locality": {"x": [probe]}, "portability": {"y": [probe]}}
    request = only(tmp_path, record)
    assert [request.target_true, request.locality[0].answer, request.portability[0].answer] == ["London"] * 3


@pytest.mark.parametrize("truth", [None, [], [[]], "", "<|endoftext|>", ["<|endoftext|>"]])
def test_an_old_answer_may_be_unknown(tmp_path, truth):
    assert only(tmp_path, {**KNOWEDIT, "ground_truth": truth}).target_true is None


@pytest.mark.parametrize("groups", [{}, None, {"Reasoning": []}, {"Reasoning": {}}, {"Reasoning": [{}]}])
def test_groups_may_be_empty(tmp_path, groups):
    request = only(tmp_path, {**KNOWEDIT, "locality": groups, "portability": groups})
    assert (request.locality, request.portability) == ((), ())


@pytest.mark.parametrize(
    ("group", "prompt", "kind"),
    [
        ("Relation_Specificity", "Her mother is", "same_subject"),
        ("relation specificity", "Her mother is", "same_subject"),
        ("FORGETFULNESS", "She was also born in", "same_subject"),
        ("neighborhood", "Unlike Ada Lovelace, Alan was born in", "other_subject"),
        ("Distracting_Neighbor", "Ada Lovelace was born in Paris. Alan was born in", "other_subject"),
        ("another", "The mother of ada lovelace is", "same_subject"),
        ("another", "The mother of Alan is", "other_subject"),
    ],
)
def test_locality_groups_say_whom_they_are_about(tmp_path, group, prompt, kind):
    record = {**KNOWEDIT, "locality": {group: [{"prompt": prompt, "ground_truth": "x"}]}}
    assert only(tmp_path, record).locality == (Probe(prompt, "x", kind),)


def test_probes_without_an_answer_are_left_out_and_counted(tmp_path, caplog):
    group = [{"prompt": "Her mother is", "ground_truth": [[], []]}, {"prompt": "Her father is", "ground_truth": "x"}]
    with caplog.at_level("INFO", "coachhook"):
        request = only(tmp_path, {**KNOWEDIT, "locality": {"Forgetfulness": group}})
    assert request.locality == (Probe("Her father is", "x", "same_subject"),)
    assert "1 probes left out, as no answer to them is given" in caplog.text


def test_wikibio_calls_its_fields_otherwise(tmp_path):
    request = only(tmp_path, WIKIBIO)
    assert (request.subject, request.target_new) == ("ada lovelace", "She wrote about the engine.")
    assert request.text[slice(*request.subject_span(request.text))] == "ada lovelace"
    assert request.locality == probes("same_subject", ("The field of work of ada lovelace is", "mathematics"))


def test_mquake_has_one_request_per_rewrite_and_its_questions_follow_from_each(tmp_path):
    first, second = read_requests(written(tmp_path, [MQUAKE]))
    assert [request.text for request in (first, second)] == [
        "Chavez was created in",
        "The head of the India government is",
    ]
    assert [request.target_new for request in (first, second)] == ["India", "Rodolfo Albano"]
    assert [request.relation for request in (first, second)] == ["P495", "P6"]
    assert first.case_id == second.case_id == 5
    assert first.paraphrases == ("Which country was Chavez created in?",)
    questions = probes("portability", *((question, "Rodolfo Albano") for question in MQUAKE["questions"]))
    assert first.portability == second.portability == questions


def test_mquake_records_are_refused_whole_as_their_questions_follow_from_all_rewrites(tmp_path):
    rewrites = [MQUAKE["requested_rewrite"][0], {**MQUAKE["requested_rewrite"][1], "target_new": "text"}]
    refused = []
    path = written(tmp_path, [{**MQUAKE, "requested_rewrite": rewrites}, MQUAKE])
    assert len(read_requests(path, refused=refused)) == 2
    assert [(error.record, error.case_id, error.field) for error in refused] == [
        (1, 5, "requested_rewrite[1].target_new")
    ]


def test_request_dicts_of_rome_and_memit(tmp_path):
    full = {**ROME["requested_rewrite"], "case_id": 3, "paraphrase_prompts": ["Ada Lovelace comes from"]}
    bare, told = read_requests(written(tmp_path, [MEMIT, full]))
    assert bare == EditRequest("Ada Lovelace", "{} was born in", "Paris", case_id=4)
    assert (told.target_new, told.target_true, told.relation) == ("Paris", "London", "P19")
    assert told.paraphrases == ("Ada Lovelace comes from",)
    neighbours = only(tmp_path, {**full, "neighborhood_prompts": ["Alan was born in"]}).locality
    assert neighbours == (Probe("Alan was born in", "London"),)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({**MEMIT, "target_new": {"id": "Q90"}}, "record 1 (case_id 4): target_new.str: it is missing"),
        ({**MEMIT, "target_true": "London"}, "target_true: 'London' is not an object"),
        ({**MEMIT, "neighborhood_prompts": ["Alan was born in"]}, "target_true: it is missing"),
        ({key: MEMIT[key] for key in MEMIT if key != "prompt"}, "prompt: it is missing"),
    ],
)
def test_damaged_request_dicts_are_named(tmp_path, record, words):
    with pytest.raises(RequestError) as caught:
        read_requests(written(tmp_path, [record]))
    assert words in str(caught.value)


def test_keyword_lists_are_one_request_per_entry(tmp_path):
    ada, bea = read_requests(written(tmp_path, LISTS))
    assert (ada.subject, ada.text, ada.target_new, ada.target_true) == (
        "Ada Lovelace",
        "Ada Lovelace was born in",
        "Paris",
        "London",
    )
    assert ada.locality == (
        Probe("Alan was born in", "London"),
        *probes("same_subject", ("She wrote", "notes"), ("She met", "Babbage")),
    )
    assert ada.portability == probes("portability", ("She was born in the land of", "France"))
    assert (bea.subject, bea.target_true, bea.paraphrases) == ("Bea", None, ("Bea's home is",))
    assert (bea.locality, bea.portability) == ((Probe("Cyd lives in", "Rome"),), ())


def test_keyword_lists_may_be_texts_for_one_request(tmp_path):
    one = {key: value[0] for key, value in LISTS.items() if isinstance(value, list)}
    request = only(tmp_path, one)
    assert (request.text, request.paraphrases) == ("Ada Lovelace was born in", ("Ada Lovelace comes from",))


def test_records_of_easyedits_calls(tmp_path):
    record = {
        **{key: KNOWEDIT[key] for key in ("subject", "prompt", "target_new")},
        "ground_truth": "<|endoftext|>",
        "rephrase_prompt": ["She comes from", "Her home is"],
        "locality": {
            "neighborhood": {"prompt": ["Alan was born in", "Cyd was born in"], "ground_truth": ["x", ["y", "z"]]}
        },
        "portability": {"one_hop": {"prompt": "Her land is", "ground_truth": "France"}},
    }
    request = only(tmp_path, record)
    assert request.paraphrases == ("She comes from", "Her home is")
    assert request.locality == (Probe("Alan was born in", "x"), Probe("Cyd was born in", "y"))
    assert request.portability == probes("portability", ("Her land is", "France"))


def test_variants_of_easyedits_files_ask_for_what_follows(tmp_path):
    new = {"Recalled Relation": "(Paris, in, France)", "New Question": "In which land?", "New Answer": "France"}
    zsre = {**ZSRE, "portability": new, "inverse question": "Who is from Paris?", "alter_subject_question": "And A.?"}
    expected = (("In which land?", "France"), ("Who is from Paris?", "Ada Lovelace"), ("And A.?", "Paris"))
    assert only(tmp_path, zsre).portability == probes("portability", *expected)
    assert only(tmp_path, zsre, zsre_target="answers").portability == ()  # they follow from the edit to alt
    rome = {**ROME, "portability": new, "alternative_subject": "A. L."}
    expected = (("In which land?", "France"), ("A. L. was born in", "Paris"))
    assert only(tmp_path, rome).portability == probes("portability", *expected)
    assert only(tmp_path, {**FLAT, "portability": new}).portability == probes("portability", expected[0])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({**KNOWEDIT, "target_new": " City of London"}, "target_new: ' City of London' is already a true answer"),
        ({**KNOWEDIT, "ground_truth": 1815}, "ground_truth: 1815 is not text"),
        ({**KNOWEDIT, "prompt": "Where was she born?"}, "prompt: the subject 'Ada Lovelace' does not stand in"),
        ({**KNOWEDIT, "prompt": "Ada Lovelace, {}, is from"}, 'names the subject and has a "{}" besides'),
        ({**FLAT, "rephrase_prompt": "f() {} Ada Lovelace is"}, "rephrase_prompt: 'f() {} Ada Lovelace is' names"),
        ({**KNOWEDIT, "locality": {"x": "text"}}, "locality.x: 'text' is not a list"),
        ({**KNOWEDIT, "locality": {"x": ["text"]}}, "locality.x: 'text' is not an object"),
        ({**KNOWEDIT, "locality": {"x": [{"prompt": "p"}]}}, "locality.x.ground_truth: it is missing"),
        ({**KNOWEDIT, "locality": {"x": [{"prompt": 3, "ground_truth": "a"}]}}, "locality prompt: 3 is not text"),
        ({**KNOWEDIT, "locality": {"x": {"prompt": ["p", "q"], "ground_truth": ["a"]}}}, "its 2 prompts need one"),
        ({**KNOWEDIT, "portability": {"New Question": "q"}}, "portability.New Answer: it is missing"),
        ({**MQUAKE, "new_answer": None}, "portability answer: None is not text"),
        ({**MQUAKE, "questions": "text"}, "questions: 'text' is not a list"),
        ({**ROME, "alternative_subject": 3}, "alternative_subject: 3 is not text"),
        ({**LISTS, "target_new": ["Paris"]}, "target_new: it has 1 entries for 2 prompts"),
        ({**LISTS, "locality_inputs": {"x": {"prompt": ["p"], "ground_truth": ["a"]}}}, "locality_inputs.x: it has 1"),
        ({**LISTS, "prompts": []}, "prompts: it is empty"),
        ({"question": "Who?", "ground_truth": "a", "target_new": "b"}, "subject: it is missing"),  # Sanitation
        ({"en": OWN, "zh": OWN}, "it has the parts ['en', 'zh']; say which one is meant (part)"),
        ({**OWN, "case_id": "\ud800"}, "'\\ud800' is half of a character"),
    ],
)
def test_bad_records_are_refused_with_the_field(tmp_path, record, words):
    refused = []
    path = written(tmp_path, [OWN, record])
    assert len(read_requests(path, refused=refused)) == 1
    assert words in str(refused[0])
    assert refused[0].record == 2
    with pytest.raises(RequestError, match="record 2"):
        read_requests(path)


# What a loader meets in the real files, by its number in shared/data/README.md; 5 is in test_request_files.py.


def test_1_the_target_of_zsre_is_a_choice_and_loc_loses_its_mark(tmp_path):
    assert [only(tmp_path, ZSRE, zsre_target=target).target_new for target in ("alt", "answers")] == ["Paris", "London"]
    assert only(tmp_path, ZSRE).locality == (Probe("who sang it", "Nina Simone"),)
    raw = json.loads(real("zsre_mend_eval.json").read_text())
    requests = read_requests(real("zsre_mend_eval.json"), zsre_target="answers")
    assert [request.target_new for request in requests] == [record["answers"][0] for record in raw]
    assert all(record["loc"] == f"nq question: {r.locality[0].prompt}" for record, r in zip(raw, requests, strict=True))


def test_2_zsre_has_empty_spaced_and_true_targets_and_contradicts_itself(tmp_path):
    records = [{**ZSRE, "alt": ""}, {**ZSRE, "alt": " Paris"}, {**ZSRE, "alt": "England"}, {**ZSRE, "alt": "Rome"}]
    refused = []
    requests = mark_superseded(read_requests(written(tmp_path, records), refused=refused))
    assert [(r.target_new, r.target_true, r.superseded) for r in requests] == [
        ("Paris", "London", True),
        ("Rome", "London", False),
    ]
    assert [(error.record, error.field) for error in refused] == [(1, "target_new"), (3, "alt")]

    raw, refused = json.loads(real("zsre_mend_eval.json").read_text()), []
    requests = read_requests(real("zsre_mend_eval.json"), refused=refused)
    assert sum(record["alt"].startswith(" ") for record in raw) == 10
    assert not any(request.target_new.startswith(" ") for request in requests)
    assert sum(len(record["answers"]) > 1 for record in raw) == 23
    true = [n for n, record in enumerate(raw, 1) if record["alt"].strip() in map(str.strip, record["answers"])]
    assert [error.record for error in refused] == true
    assert max(len(request.locality[0].answer) for request in requests) == 255
    assert sum(request.superseded for request in mark_superseded(requests)) == 166


def test_3_counterfact_keeps_newlines_and_stray_braces(tmp_path):
    prompt = 'A {stray} brace } and \\displaystyle{x.\nAda Lovelace, "{0}", comes from'
    rome = only(tmp_path, {**ROME, "paraphrase_prompts": [prompt]})
    assert rome.paraphrase_texts == only(tmp_path, {**FLAT, "rephrase_prompt": prompt}).paraphrase_texts == (prompt,)
    flat = read_requests(real("counterfact-edit.json"))
    assert sum("\n" in request.paraphrase_texts[0] for request in flat) == 38
    assert sum(not request.subject.isascii() for request in flat) == 7
    assert len(flat) - len({request.subject for request in flat}) == 17
    prompts = {request.text for request in flat}
    assert sum(request.locality[0].prompt in prompts for request in flat) == 3
    rome = read_requests(real("counterfact.json"))
    assert sum("\n" in text for request in rome for text in request.paraphrase_texts) == 187
    raw = json.loads(real("counterfact.json").read_text())
    for record, request in zip(raw, rome, strict=True):
        rewrite = record["requested_rewrite"]
        assert request.text == rewrite["prompt"].replace("{}", rewrite["subject"])
        assert request.paraphrase_texts == tuple(record["paraphrase_prompts"])
        assert request.locality == tuple(
            Probe(p, rewrite["target_true"]["str"]) for p in record["neighborhood_prompts"]
        )
        assert (request.target_new, request.relation) == (rewrite["target_new"]["str"], rewrite["relation_id"])


@pytest.mark.parametrize(
    ("name", "count", "refused", "locality", "portability", "lacking"),
    [
        ("knowedit-zsre.json", 381, {"is already a true": 18, "does not stand in": 1}, 762, 381, 29),
        ("knowedit-wiki_counterfact.json", 298, {"is already a true": 2}, 433, 477, 0),
        ("knowedit-wiki_recent.json", 200, {}, 696, 220, 0),
    ],
)
def test_4_knowedit(name, count, refused, locality, portability, lacking, caplog):
    errors, path = [], real(name)
    with caplog.at_level("INFO", "coachhook"):
        requests = read_requests(path, refused=errors)
    total = len(json.loads(path.read_text()))
    assert (len(requests), len(requests) + len(errors)) == (count, total)
    reasons = Counter(words for error in errors for words in refused if words in str(error))
    assert (reasons, reasons.total()) == (refused, len(errors))
    assert f"{len(errors)} of {total} records refused" in caplog.text
    assert ("1 probes left out" in caplog.text) == (name == "knowedit-wiki_recent.json")
    assert sum(len(request.locality) for request in requests) == locality
    assert sum(len(request.portability) for request in requests) == portability
    assert {probe.kind for request in requests for probe in request.locality} == {"same_subject"}
    named = [(request, text.lower()) for request in requests for text in request.paraphrase_texts]
    assert sum(request.subject.lower() not in text for request, text in named) == lacking


def test_6_subjects_differ_in_case_and_case_ids_may_be_absent_or_restart(tmp_path):
    lower = {**FLAT, "prompt": "ada lovelace was born in", "case_id": 0}
    nobody = {key: value for key, value in FLAT.items() if key != "case_id"} | {"prompt": "She was born in"}
    refused = []
    requests = read_requests(written(tmp_path, [lower, FLAT, lower, nobody]), refused=refused)
    assert [request.case_id for request in requests] == [0, 7, 0]
    assert [request.subject_span(request.text) for request in requests] == [(0, 12)] * 3
    assert [(error.record, error.case_id) for error in refused] == [(4, None)]


@pytest.mark.parametrize(
    ("name", "total", "refused", "paraphrases", "probes", "superseded"),
    [
        ("counterfact-edit.json", 2000, 0, 1, 1, 5),
        ("counterfact.json", 600, 0, 2, 10, 0),
        ("zsre_mend_eval.json", 700, 21, 1, 1, 166),
    ],
)
def test_real_files_are_read_whole(name, total, refused, paraphrases, probes, superseded):
    errors = []
    requests = read_requests(real(name), refused=errors)
    assert (len(requests), len(errors)) == (total - refused, refused)
    assert all("already a true answer" in str(error) for error in errors)
    assert sum(request.superseded for request in mark_superseded(requests)) == superseded
    for request in requests:
        start, end = request.subject_span(request.text)
        assert request.text[start:end].lower() == request.subject.lower()
        assert (len(request.paraphrases), len(request.locality)) == (paraphrases, probes)
        assert len(request.portability) == (name == "zsre_mend_eval.json")


def test_own_records_keep_all_fields(tmp_path):
    plain = only(tmp_path, OWN)
    full = {
        **OWN,
        "paraphrases": ["Of {}"],
        "locality": [{"prompt": "p", "answer": "a", "kind": "same_subject"}],
        "portability": [{"prompt": "q", "answer": "b"}],
        "case_id": "x",
        "relation": "P19",
        "superseded": True,
    }
    follows, stays = Probe("q", "b", "portability"), Probe("p", "a", "same_subject")
    expected = replace(plain, paraphrases=("Of {}",), locality=(stays,), portability=(follows,), case_id="x")
    assert only(tmp_path, full) == replace(expected, relation="P19", superseded=True)
