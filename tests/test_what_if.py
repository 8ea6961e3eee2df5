"""A what-if says what editing and evaluating by hand would say, and leaves no trace."""

from dataclasses import replace

import pytest
import torch
from conftest import TEXT, build_model
from test_editors import deltas, logits, make_editor

from coachhook import EditRequest
from coachhook.edit_request import RequestError
from coachhook.editors import DEFAULT_METHOD
from coachhook.text_agreement import argmax_tokens, share_equal
from coachhook.what_if import contradictions, what_if


def new_editor(tokenizer, covariances, method="memit", **changes):
    return make_editor(build_model("gpt2"), tokenizer, covariances, method, **({"target_lr": 0.5} | changes))


def known(metrics):
    return {name: value for name, value in metrics.row().items() if value is not None}


@pytest.mark.parametrize(
    ("method", "changes", "protocol"),
    [
        *(("memit", {}, protocol) for protocol in ("easyedit", "generate", "rome")),
        (DEFAULT_METHOD, {"target_lr": 2.0, "clamp": 10.0, "target_steps": 8, "covariance_weight": 0.1}, "rome"),
    ],
)
def test_numbers_are_those_of_editing_and_evaluating(method, changes, protocol, tokenizer, covariances, requests):
    requests = [replace(request, target_true="the river") for request in requests]
    first, second, third = requests[:2], requests[2:4], requests[4:]
    editor = new_editor(tokenizer, covariances, method, **changes)
    editor.edit(first)
    found = what_if(editor, [second, third], protocol=protocol)
    before = [editor.evaluate(batch, protocol) for batch in (first, second, third)]
    for batch in (second, third):
        editor.edit(batch)
    after = [editor.evaluate(batch, protocol) for batch in (first, second, third)]
    assert (found.step, found.protocol) == (1, protocol)
    told = [(batch.step, batch.new, batch.requests) for batch in found.batches]
    assert told == [(1, False, 2), (2, True, 2), (3, True, 2)]
    for batch, old, new in zip(found.batches, before, after, strict=True):  # other batches, other rounding
        assert known(batch.before) == pytest.approx(known(old), rel=1e-4)
        assert known(batch.after) == pytest.approx(known(new), rel=1e-4)
    assert before != after


@pytest.mark.parametrize(("method", "changes"), [("coachhook", {"alpha": 1.0}), (DEFAULT_METHOD, {})])
def test_the_editor_is_as_before_bit_for_bit(method, changes, tokenizer, covariances, requests):
    editor = new_editor(tokenizer, covariances, method, **changes)
    editor.edit(requests[:3])
    steps, weights, thresholds = editor.journal, deltas(editor), editor.thresholds()
    outputs = logits(editor.model, tokenizer, requests)
    what_if(editor, [requests[3:]], texts=TEXT)
    assert editor.journal == steps
    assert editor.thresholds() == thresholds
    assert all(torch.equal(weight, deltas(editor)[layer]) for layer, weight in weights.items())
    assert torch.equal(logits(editor.model, tokenizer, requests), outputs)


def test_a_step_that_fails_leaves_the_editor_as_before(tokenizer, covariances, requests, monkeypatch):
    editor = new_editor(tokenizer, covariances)
    editor.edit(requests[:1])
    outputs = logits(editor.model, tokenizer, requests)
    edit = editor.edit

    def fail_at_three(batch):
        if editor.step == 2:
            raise RuntimeError("no memory")
        return edit(batch)

    monkeypatch.setattr(editor, "edit", fail_at_three)
    with pytest.raises(RuntimeError, match="no memory"):
        what_if(editor, [requests[1:3], requests[3:]])
    assert editor.step == 1
    assert torch.equal(logits(editor.model, tokenizer, requests), outputs)


def test_the_worst_prompts_and_the_numbers_that_fall_are_named(tokenizer, covariances, requests):
    editor = new_editor(tokenizer, covariances)
    editor.edit(requests[:3])
    found = what_if(editor, [requests[3:]], texts=TEXT[:2])
    assert [prompt.step for prompt in found.prompts] == sorted(prompt.step for prompt in found.prompts)
    assert {prompt.kind for prompt in found.prompts} == {"edit", "paraphrase", "other_subject", "same_subject"}
    losing = {(p.step, p.kind, p.prompt, p.answer): p.change for p in found.prompts if p.change < 0}
    losses = sorted(losing.values())
    assert losses
    assert [prompt.change for prompt in found.worst(3)] == losses[:3]
    falling = {
        (batch.step, metric)
        for batch in found.batches
        for metric in ("reliability", "generality", "locality", "locality_same_subject")
        if getattr(batch.before, metric) - getattr(batch.after, metric) > 0.1
    }
    drops = found.drops(0.1)
    assert {(drop.step, drop.metric) for drop in drops if drop.step} == falling
    assert falling
    old, new = found.text_agreement()
    assert (old - new > 0.1) == any(drop.metric == "agreement" for drop in drops)
    assert found.drops(1.0) == []


def test_text_agreement_is_the_share_of_tokens_read_as_before(tokenizer, covariances, requests):
    editor = new_editor(tokenizer, covariances)
    found = what_if(editor, [requests], texts=[*TEXT, "", " "])
    assert [text.text for text in found.texts] == TEXT
    assert [text.before for text in found.texts] == [1.0] * len(TEXT)
    editor.edit(requests)
    for text, told in zip(TEXT, found.texts, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            edited = editor.model(ids).logits[0, :-1].argmax(-1)
            with editor.disabled():
                base = editor.model(ids).logits[0, :-1].argmax(-1)
        assert told.after == (edited == base).double().mean().item()
    assert min(text.after for text in found.texts) < 1
    assert share_equal(argmax_tokens(editor.model, tokenizer, ["Ada"[:1]]), [()]) == [1.0]
    assert what_if(editor, [requests[:1]]).text_agreement() is None


def test_contradictions_are_named_and_what_they_supersede_is_not_scored(tokenizer, covariances, requests):
    editor = new_editor(tokenizer, covariances)
    editor.edit(requests[:2])
    changed = replace(requests[0], target_new="Oslo")
    found = what_if(editor, [[changed, requests[1]], [requests[2]]])
    (one,) = found.contradictions
    assert (one.step, one.request, one.earlier_step, one.earlier) == (2, changed, 1, requests[0])
    assert str(one) == "'Ada Lovelace was born in': step 2 says 'Oslo' where step 1 said 'Paris'"
    assert [batch.superseded for batch in found.batches] == [1, 0, 0]
    edits = [(prompt.step, prompt.answer) for prompt in found.prompts if prompt.kind == "edit"]
    assert edits == [(1, requests[1].target_new), (2, "Oslo"), (2, requests[1].target_new), (3, requests[2].target_new)]
    assert sum(prompt.step == 1 and prompt.kind == "other_subject" for prompt in found.prompts) == 2


def test_contradictions_are_with_what_stands_latest():
    first, second, third = (EditRequest("Ada", "{} was born in", target) for target in ("Paris", "Rome", "Paris"))
    assert [one.earlier for one in contradictions([[third]], [[first], [second]])] == [second]
    (own,) = contradictions([[first, second]])
    assert (own.step, own.earlier_step) == (1, 1)
    assert contradictions([[third]], [[second], [first]]) == ()


def test_what_cannot_be_asked_is_refused_before_anything_is_edited(tokenizer, covariances, requests):
    editor = new_editor(tokenizer, covariances)
    editor.edit(requests[:1])
    with pytest.raises(RequestError, match="protocol 'best' is unknown"):
        what_if(editor, [requests[1:]], protocol="best")
    long = replace(requests[2], paraphrases=("Where " * 70 + "was {} born?",))
    with pytest.raises(RequestError, match=r"record 2: paraphrase prompt: .*context holds 64"):
        what_if(editor, [[requests[1], long]])
    assert editor.step == 1
