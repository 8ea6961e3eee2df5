import copy
from dataclasses import replace

import literal
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor, EditRequest, Probe
from coachhook.architectures import ModelParts
from coachhook.edit_request import RequestError
from coachhook.gates import NoGate, PaperGate
from coachhook.hooks import HookLayers
from coachhook.metrics import PROTOCOLS, Metrics, Question, predict, predict_base, questions, score, summarise
from coachhook.metrics.questions import KINDS, LOCALITY

LITERAL = {"easyedit": literal.teacher_forced, "generate": literal.generated}


@pytest.fixture(scope="session")
def rivals(requests):
    """The requests with true answers of other lengths than the new ones, but for the last; two with portability."""
    true = ["city of Rome", "Paris", "London for many years", "Rome", "city of Rome and the river", None]
    follows = (Probe("The river of that city is the", "engine of many years", "portability"),)
    changed = [replace(request, target_true=answer) for request, answer in zip(requests, true, strict=True)]
    return [replace(request, portability=follows) if i in (1, 5) else request for i, request in enumerate(changed)]


def literally(model, tokenizer, question, protocol):
    """What `protocol` reads of one question, one prompt at a time."""
    if protocol != "rome":
        return LITERAL[protocol](model, tokenizer, question.prompt, question.answer)
    answers = question.rivals or ()
    return tuple(literal.mean_log_likelihood(model, tokenizer, question.prompt, answer) for answer in answers)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("gate", [NoGate, lambda: PaperGate(1.2)], ids=["off", "paper"])
@pytest.mark.parametrize("batch_tokens", [8192, 40])
def test_answers_equal_those_read_off_record_by_record(
    model, tokenizer, rivals, protocol, gate, batch_tokens, monkeypatch
):
    monkeypatch.setattr("coachhook.metrics.reading.BATCH_TOKENS", batch_tokens)
    model = model.double()
    asked = questions(rivals)
    assert {question.kind for question in asked} == set(KINDS)
    plain = predict(model, tokenizer, asked, protocol)
    hooks = HookLayers(ModelParts(model), {layer: gate() for layer in LAYERS})
    generator = torch.Generator().manual_seed(2)
    for hook in hooks:
        hook.add(0.1 * torch.randn(hook.dense().shape, generator=generator))
    given = predict(model, tokenizer, asked, protocol)
    expected = [literally(model, tokenizer, question, protocol) for question in asked]
    assert list(map(list, given)) == [pytest.approx(list(answer), abs=1e-6) for answer in expected]
    assert given != plain
    hooks.close()
    expected = [literally(model, tokenizer, question, protocol) for question in asked]
    assert list(map(list, plain)) == [pytest.approx(list(answer), abs=1e-6) for answer in expected]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_side_the_tokenizer_pads_on_changes_nothing(model, tokenizer, rivals, protocol):
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    asked = questions(rivals)
    assert predict(model, left, asked, protocol) == predict(model, tokenizer, asked, protocol)


def test_the_two_token_protocols_differ_after_a_wrong_first_token(model, tokenizer, requests):
    """Teacher forcing reads each token behind the right ones, generation behind its own."""
    asked = [q for q in questions(requests) if len(tokenizer(" " + q.answer)["input_ids"]) > 2]
    assert asked
    forced = predict(model, tokenizer, asked, "easyedit")
    free = predict(model, tokenizer, asked, "generate")
    assert [row[0] for row in forced] == [row[0] for row in free]
    assert forced != free


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_editors_metrics_are_those_counted_record_by_record(family, tokenizer, covariances, rivals, protocol):
    model = build_model(family).double()
    options = {"target_steps": 3, "target_lr": 0.5, "context_templates": 1, "covariance_weight": 1.0}
    editor = Editor(model, tokenizer, "memit", covariances[family], **options)
    editor.edit(rivals)
    metrics = editor.evaluate(rivals, protocol)
    if protocol == "rome":
        expected = literal.rome(model, tokenizer, rivals)
        assert {name: getattr(metrics, name) for name in expected} == pytest.approx(expected, abs=1e-6)
        with editor.disabled():
            before = literal.rome(model, tokenizer, rivals)
        assert {name: getattr(metrics.base, name) for name in before} == pytest.approx(before, abs=1e-6)
        assert before != expected
        assert metrics.not_scored == metrics.base.not_scored == 1
        assert (metrics.locality_same_subject, metrics.portability) == (None, None)
        assert (metrics.reliability, metrics.generality, metrics.locality) == tuple(expected[k] for k in ROME)
    else:
        assert metrics.scores() == pytest.approx(counted(editor, rivals, protocol))
    editor.close()


ROME = ("efficacy", "paraphrase", "neighbourhood")


def counted(editor, requests, protocol):
    """The generic metrics of a token protocol, one prompt at a time."""
    by_kind = {kind: [] for kind in KINDS}
    for request in requests:
        texts = {"edit": [request.text], "paraphrase": request.paraphrase_texts}
        of_request = {kind: [(text, request.target_new) for text in of_kind] for kind, of_kind in texts.items()}
        for probe in (*request.locality, *request.portability):
            of_request.setdefault(probe.kind, []).append((probe.prompt, probe.answer))
        for kind, prompts in of_request.items():
            scores = []
            for prompt, answer in prompts:
                given = LITERAL[protocol](editor.model, editor.tokenizer, prompt, answer)
                wanted = tuple(literal.token_ids(editor.tokenizer, " " + answer))
                if kind in LOCALITY:
                    with editor.disabled():
                        wanted = LITERAL[protocol](editor.model, editor.tokenizer, prompt, answer)
                equal = [a == b for a, b in zip(given, wanted, strict=True)]
                scores.append(all(equal) if protocol == "generate" else sum(equal) / len(equal))
            by_kind[kind].append(sum(scores) / len(scores))
    names = ("reliability", "generality", "locality", "locality_same_subject", "portability")
    return {name: sum(v) / len(v) for name, v in zip(names, by_kind.values(), strict=True)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_base_model_is_asked_what_it_is_compared_on(model, tokenizer, rivals, protocol):
    model = model.double()
    asked = questions(rivals)
    everything = predict(model, tokenizer, asked, protocol)
    base = predict_base(model, tokenizer, asked, protocol)
    kinds = KINDS if protocol == "rome" else LOCALITY
    assert base == [answer if q.kind in kinds else () for q, answer in zip(asked, everything, strict=True)]
    assert score(tokenizer, asked, everything, base, protocol) == score(tokenizer, asked, *[everything] * 2, protocol)


def test_the_base_model_refuses_a_long_prompt_of_any_kind(model, tokenizer, requests):
    asked = [*questions(requests), Question(6, "paraphrase", 0, "river " * 80, "Rome")]
    with pytest.raises(RequestError, match=r"record 7: paraphrase prompt: .*context holds 64; shorten it"):
        predict_base(model, tokenizer, asked, "easyedit")


def test_rome_refuses_a_long_true_answer(model, tokenizer, requests):
    long = replace(requests[0], target_true="river " * 80)
    with pytest.raises(RequestError, match=r"record 1: edit prompt: .*context holds 64; shorten it"):
        predict_base(model, tokenizer, questions([long]), "rome")


def test_no_questions_have_no_answers(model, tokenizer):
    for protocol in PROTOCOLS:
        assert predict(model, tokenizer, [], protocol) == []
        assert predict_base(model, tokenizer, [], protocol) == []


def ask(kind, request=0, index=0):
    return Question(request, kind, index, "The capital of France is", "city of Rome")


def test_edits_are_scored_by_the_answer_and_probes_by_the_base_model(tokenizer):
    answer = tuple(tokenizer(" city of Rome")["input_ids"])
    count = len(answer)
    assert count >= 2
    wrong = (answer[0] + 1, *answer[1:])
    other = tuple(token + 1 for token in answer)
    asked = [ask(kind) for kind in KINDS]
    given, base = [answer, wrong, wrong, answer, wrong], [other, other, wrong, other, wrong]
    share = (count - 1) / count
    assert score(tokenizer, asked, given, base, "easyedit") == {"score": pytest.approx([1, share, 1, 0, share])}
    assert score(tokenizer, asked, given, base, "generate") == {"score": [1, 0, 1, 0, 0]}


def test_rome_scores_which_answer_is_the_more_probable(tokenizer):
    asked = [ask(kind) for kind in ("edit", "paraphrase", "other_subject", "edit")]
    given, base = [(-1.0, -2.0), (-2.0, -2.0), (-4.0, -3.0), ()], [(-3.0, -1.0), (-1.0, -2.0), (-1.0, -9.0), ()]
    columns = score(tokenizer, asked, given, base, "rome")
    assert columns["score"] == [1, 0, 0, None]  # a tie is no success
    assert columns["base_score"] == [0, 1, 1, None]
    difference = [0.232544, 0.0, -0.031471, None]
    assert columns["magnitude"] == [pytest.approx(value, abs=1e-6) for value in difference]


def test_rivals_are_ordered_by_which_is_to_win():
    probes = (Probe("a", "x"), Probe("b", "y", "same_subject"))
    follows = (Probe("c", "z", "portability"),)
    request = EditRequest("Rome", "{} is", "Paris", "old", ("Is {}",), locality=probes, portability=follows)
    found = {question.kind: question.rivals for question in questions([request])}
    assert found == {
        "edit": ("Paris", "old"),
        "paraphrase": ("Paris", "old"),
        "other_subject": ("old", "Paris"),
        "same_subject": None,
        "portability": None,
    }
    assert not any(question.rivals for question in questions([replace(request, target_true=None)]))


def test_nothing_scored_is_none_and_counted(model, tokenizer, requests):
    asked = questions(requests)
    answers = predict(model, tokenizer, asked, "rome")
    assert answers == [()] * len(asked)
    metrics = PROTOCOLS["rome"].summarise(asked, score(tokenizer, asked, answers, answers, "rome"))
    assert metrics.not_scored == len(requests)
    own = ("efficacy", "paraphrase", "neighbourhood", "score", "efficacy_magnitude")
    assert {getattr(metrics, name) for name in own} == {None}


def test_a_failed_third_makes_romes_score_zero(tokenizer):
    asked = [ask(kind) for kind in ("edit", "paraphrase", "other_subject")]
    given = [(-1.0, -2.0), (-1.0, -2.0), (-2.0, -1.0)]
    metrics = PROTOCOLS["rome"].summarise(asked, score(tokenizer, asked, given, given, "rome"))
    assert (metrics.score, metrics.mean) == (0, pytest.approx(2 / 3))


def test_an_unknown_protocol_is_refused(model, tokenizer, requests):
    editor = Editor(model, tokenizer, "ft-m", layers=LAYERS)
    with pytest.raises(RequestError, match="protocol 'roem' is unknown; use one of easyedit, generate, rome"):
        editor.evaluate(requests, "roem")
    editor.close()


def test_questions_number_the_probes_of_each_kind_apart():
    probes = (
        Probe("a", "x"),
        Probe("b", "y", "same_subject"),
        Probe("c", "z"),
    )
    follows = (Probe("d", "v", "portability"), Probe("e", "w", "portability"))
    texts = ("Is {}", "In {}")
    request = EditRequest("Rome", "{} is", "Paris", paraphrases=texts, locality=probes, portability=follows)
    asked = questions([EditRequest("Oslo", "{} is", "Paris"), request])
    assert [(q.request, q.kind, q.index, q.prompt, q.answer) for q in asked] == [
        (0, "edit", 0, "Oslo is", "Paris"),
        (1, "edit", 0, "Rome is", "Paris"),
        (1, "paraphrase", 0, "Is Rome", "Paris"),
        (1, "paraphrase", 1, "In Rome", "Paris"),
        (1, "other_subject", 0, "a", "x"),
        (1, "same_subject", 0, "b", "y"),
        (1, "other_subject", 1, "c", "z"),
        (1, "portability", 0, "d", "v"),
        (1, "portability", 1, "e", "w"),
    ]


def test_metrics_are_means_over_requests_not_over_prompts():
    asked = [ask("edit", 0), ask("edit", 1), *(ask("paraphrase", 0, i) for i in range(3)), ask("paraphrase", 1)]
    metrics = summarise(asked, [1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    assert metrics == Metrics(0.5, 0.5, None, None)  # over prompts, generality would be 0.75
    assert metrics.mean == 0.5


def test_the_mean_leaves_out_probes_about_the_same_subject():
    kinds = ["edit", "paraphrase", "other_subject", "same_subject"]
    metrics = summarise([ask(kind) for kind in kinds], [1.0, 0.5, 0.3, 0.0])
    assert metrics.mean == pytest.approx(0.6)
    assert metrics.locality_same_subject == 0.0
    assert Metrics(None, None, None, 1.0, 1.0).mean is None


def test_portability_is_named_only_where_there_is_any():
    asked = [ask("edit"), ask("portability")]
    assert summarise(asked, [1.0, 0.5]).scores()["portability"] == 0.5
    assert "portability" not in summarise(asked[:1], [1.0]).row()


def test_scores_and_questions_must_match():
    with pytest.raises(ValueError, match="zip"):
        summarise([ask("edit")], [])
