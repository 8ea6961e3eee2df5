import literal
import pytest
import torch
from conftest import LAYERS

from coachhook import EditRequest, Probe
from coachhook.architectures import ModelParts
from coachhook.edit_request import RequestError
from coachhook.gates import NoGate, PaperGate
from coachhook.hooks import HookLayers
from coachhook.metrics import PROTOCOLS, Metrics, Question, predict, predict_base, questions, score, summarise
from coachhook.metrics.questions import LOCALITY

LITERAL = {"easyedit": literal.teacher_forced, "generate": literal.generated}


def test_every_protocol_has_its_literal_counterpart():
    assert set(PROTOCOLS) == set(LITERAL)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("gate", [NoGate, lambda: PaperGate(1.2)], ids=["off", "paper"])
@pytest.mark.parametrize("batch_tokens", [8192, 40])
def test_answers_equal_those_read_off_record_by_record(
    model, tokenizer, requests, protocol, gate, batch_tokens, monkeypatch
):
    monkeypatch.setattr("coachhook.metrics.protocols._BATCH_TOKENS", batch_tokens)
    model = model.double()
    asked = questions(requests)
    plain = predict(model, tokenizer, asked, protocol)
    hooks = HookLayers(ModelParts(model), {layer: gate() for layer in LAYERS})
    generator = torch.Generator().manual_seed(2)
    for hook in hooks:
        hook.add(0.1 * torch.randn(hook.dense().shape, generator=generator))
    given = predict(model, tokenizer, asked, protocol)
    expected = [LITERAL[protocol](model, tokenizer, q.prompt, q.answer) for q in asked]
    assert given == expected
    assert given != plain
    hooks.close()
    assert plain == [LITERAL[protocol](model, tokenizer, q.prompt, q.answer) for q in asked]


def test_the_two_protocols_differ_after_a_wrong_first_token(model, tokenizer, requests):
    """Teacher forcing reads each token behind the right ones, generation behind its own."""
    asked = [q for q in questions(requests) if len(tokenizer(" " + q.answer)["input_ids"]) > 2]
    assert asked
    forced = predict(model, tokenizer, asked, "easyedit")
    free = predict(model, tokenizer, asked, "generate")
    assert [row[0] for row in forced] == [row[0] for row in free]
    assert forced != free


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_base_model_is_asked_what_it_is_compared_on(model, tokenizer, requests, protocol):
    model = model.double()
    asked = questions(requests)
    everything = predict(model, tokenizer, asked, protocol)
    base = predict_base(model, tokenizer, asked, protocol)
    assert base == [answer if q.kind in LOCALITY else () for q, answer in zip(asked, everything, strict=True)]
    assert score(tokenizer, asked, everything, base, protocol) == score(tokenizer, asked, *[everything] * 2, protocol)


def test_the_base_model_refuses_a_long_prompt_of_any_kind(model, tokenizer, requests):
    asked = [*questions(requests), Question(6, "paraphrase", 0, "river " * 80, "Rome")]
    with pytest.raises(RequestError, match=r"record 7: paraphrase prompt: .*context holds 64; shorten it"):
        predict_base(model, tokenizer, asked, "easyedit")


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
    kinds = ["edit", "paraphrase", "other_subject", "same_subject"]
    asked = [ask(kind) for kind in kinds]
    given, base = [answer, wrong, wrong, answer], [other, other, wrong, other]
    share = (count - 1) / count
    assert score(tokenizer, asked, given, base, "easyedit") == pytest.approx([1, share, 1, 0])
    assert score(tokenizer, asked, given, base, "generate") == [1, 0, 1, 0]


def test_questions_number_the_probes_of_each_kind_apart():
    probes = (
        Probe("a", "x"),
        Probe("b", "y", "same_subject"),
        Probe("c", "z"),
    )
    request = EditRequest("Rome", "{} is", "Paris", paraphrases=("Is {}", "In {}"), locality=probes)
    asked = questions([EditRequest("Oslo", "{} is", "Paris"), request])
    assert [(q.request, q.kind, q.index, q.prompt, q.answer) for q in asked] == [
        (0, "edit", 0, "Oslo is", "Paris"),
        (1, "edit", 0, "Rome is", "Paris"),
        (1, "paraphrase", 0, "Is Rome", "Paris"),
        (1, "paraphrase", 1, "In Rome", "Paris"),
        (1, "other_subject", 0, "a", "x"),
        (1, "same_subject", 0, "b", "y"),
        (1, "other_subject", 1, "c", "z"),
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
    assert Metrics(None, None, None, 1.0).mean is None


def test_scores_and_questions_must_match():
    with pytest.raises(ValueError, match="zip"):
        summarise([ask("edit")], [])
