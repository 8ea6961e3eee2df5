"""An editor in rough hands: NaN, interruptions, training mode, gradients switched off, several threads."""

import gc
import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, build_model
from test_editors import logits, make_editor
from test_ordinary_model import edit

from coachhook import Editor, EditRequest, RequestError
from coachhook.covariance import compute_covariance, read_covariance
from coachhook.edited_model import EditorError


def fails_with(error, words, editor, tokenizer, requests, act):
    """One line, and the editor answers, and goes on, as if nothing had been asked of it."""
    before, step = logits(editor.model, tokenizer, requests), editor.step
    with pytest.raises(error, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert editor.step == step
    assert torch.equal(logits(editor.model, tokenizer, requests), before)


@pytest.mark.parametrize("method", ["memit", "coachhook-nohook", "coachhook-leverage", "lora"])
def test_an_edit_that_ends_in_nan_leaves_nothing_behind(method, tokenizer, requests, covariances):
    editor = edit(method, build_model("gpt2"), tokenizer, requests, covariances)
    twin = edit(method, build_model("gpt2"), tokenizer, requests, covariances)
    weight = editor.model.transformer.h[4].mlp.c_fc.weight
    kept = weight.detach().clone()

    def broken():
        with torch.no_grad():
            weight[0, 0] = torch.nan
        try:
            editor.edit(requests[3:5])
        finally:
            with torch.no_grad():
                weight.copy_(kept)

    fails_with(EditorError, "NaN or infinite values", editor, tokenizer, requests, broken)
    for one in (editor, twin):
        one.edit(requests[3:5])
    assert torch.equal(logits(editor.model, tokenizer, requests), logits(twin.model, tokenizer, requests))


@pytest.mark.parametrize("name", ["target_lr", "clamp", "covariance_weight"])
def test_a_hyperparameter_that_is_not_finite_is_refused(name, tokenizer, covariances):
    from coachhook.errors import CoachHookError

    with pytest.raises(CoachHookError, match=f"{name}: .*finite"):
        make_editor(build_model("gpt2"), tokenizer, covariances, "memit", **{name: float("inf")})


@pytest.mark.parametrize("method", ["memit", "coachhook-leverage"])
def test_an_interrupted_edit_or_rollback_leaves_the_editor_as_it_was(
    method, tokenizer, requests, covariances, monkeypatch
):
    editor = edit(method, build_model("gpt2"), tokenizer, requests, covariances)
    editor.edit(requests[3:5])
    replay, calls = type(editor._method).replay, []

    def interrupted(self, update):
        calls.append(update)
        if len(calls) == 1:
            raise KeyboardInterrupt
        replay(self, update)

    monkeypatch.setattr(type(editor._method), "replay", interrupted)
    fails_with(KeyboardInterrupt, "^$", editor, tokenizer, requests, lambda: editor.rollback(1))
    calls.clear()
    fails_with(KeyboardInterrupt, "^$", editor, tokenizer, requests, lambda: editor.edit(requests[5:]))
    editor.rollback(1)
    twin = edit(method, build_model("gpt2"), tokenizer, requests, covariances)
    assert torch.equal(logits(editor.model, tokenizer, requests), logits(twin.model, tokenizer, requests))


@pytest.mark.parametrize("method", ["memit", "coachhook-leverage", "lora"])
def test_a_model_in_training_mode_is_edited_and_evaluated_without_dropout(method, tokenizer, requests, covariances):
    plain = edit(method, build_model("gpt2"), tokenizer, requests, covariances)
    model = build_model("gpt2")
    model.train()
    model.transformer.h[0].mlp.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert any(isinstance(module, torch.nn.Dropout) and module.p for module in model.modules())
    editor = edit(method, model, tokenizer, requests, covariances)
    model.train()
    editor.edit(requests[3:])
    plain.edit(requests[3:])
    assert model.training
    assert editor.evaluate(requests) == plain.evaluate(requests)
    model.eval()
    assert torch.equal(logits(model, tokenizer, requests), logits(plain.model, tokenizer, requests))
    editor.close()
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_an_editor_whose_name_is_lost_stays_on_its_model_and_is_found_there(tokenizer, requests, covariances):
    model = build_model("gpt2").train()
    before = logits(build_model("gpt2"), tokenizer, requests)
    edit("memit", model, tokenizer, requests, covariances)
    gc.collect()
    assert not any(module.training for module in model.modules())
    edited = logits(model, tokenizer, requests)
    assert not torch.equal(edited, before)
    Editor.of(model).rollback(0)
    Editor.of(model).close()
    assert model.training
    assert torch.equal(logits(model.eval(), tokenizer, requests), before)


@pytest.mark.parametrize(
    ("method", "without"),
    [
        ("memit", torch.no_grad),
        ("coachhook-leverage", torch.inference_mode),
        ("ft-m", torch.inference_mode),
        ("lora", torch.inference_mode),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_it_edits_where_gradients_are_off(method, without, tokenizer, requests, covariances):
    plain = edit(method, build_model("gpt2"), tokenizer, requests, covariances)
    model = build_model("gpt2")
    with without():
        editor = edit(method, model, tokenizer, requests, covariances)
    assert torch.equal(logits(editor.model, tokenizer, requests), logits(plain.model, tokenizer, requests))
    for one in (editor, plain):
        one.edit(requests[3:])
    assert torch.equal(logits(editor.model, tokenizer, requests), logits(plain.model, tokenizer, requests))


@pytest.mark.parametrize("method", ["coachhook", "grace", "lora"])  # one of each way to switch an editor off
def test_it_is_disabled_while_any_thread_is_inside(method, tokenizer, requests, covariances):
    model = build_model("gpt2")
    base = logits(model, tokenizer, requests)
    editor = edit(method, model, tokenizer, requests, covariances)
    edited = logits(model, tokenizer, requests)
    inside, leave, left = threading.Event(), threading.Event(), threading.Event()

    def other():
        with editor.disabled():
            inside.set()
            leave.wait(60)
        left.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(60)
    with ExitStack() as stack:
        stack.enter_context(editor.disabled())
        leave.set()  # who came first leaves first
        assert left.wait(60)
        assert torch.equal(logits(model, tokenizer, requests), base)
    thread.join()
    assert torch.equal(logits(model, tokenizer, requests), edited)
    assert not torch.equal(edited, base)


def test_what_is_no_list_of_requests(tokenizer, requests, covariances):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "memit", target_steps=1)
    listed = make_editor(build_model("gpt2"), tokenizer, covariances, "memit", target_steps=1)
    editor.edit(request for request in requests[:2])
    listed.edit(requests[:2])
    assert torch.equal(logits(editor.model, tokenizer, requests), logits(listed.model, tokenizer, requests))
    assert editor.evaluate(iter(requests)) == listed.evaluate(requests)
    dictionary = {"subject": "Ada", "prompt": "{} is", "target_new": "Paris"}
    act = lambda: editor.edit([requests[0], dictionary])  # noqa: E731
    fails_with(RequestError, r"record 2: \{'subject': 'Ada'.* is no EditRequest", editor, tokenizer, requests, act)


def test_a_closed_editor_evaluates_nothing(tokenizer, requests, covariances):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "memit", target_steps=1)
    editor.edit(requests[:2])
    editor.close()
    with pytest.raises(EditorError, match="closed"):
        editor.evaluate(requests[:2])


def test_a_tokenizer_without_places_is_refused(covariances):
    from transformers import ByT5Tokenizer

    with pytest.raises(EditorError, match="ByT5Tokenizer does not say where its tokens stand"):
        make_editor(build_model("gpt2"), ByT5Tokenizer(), covariances, "memit")


def test_going_on_takes_the_covariance_that_the_edits_were_made_with(tokenizer, requests, covariances, tmp_path):
    from coachhook.covariance import CovarianceError, write_covariance

    known = covariances["gpt2"]
    editor = edit("coachhook-leverage", build_model("gpt2"), tokenizer, requests, covariances)
    editor.save_pretrained(tmp_path / "edits")
    write_covariance(known, tmp_path / "same")
    other = {layer: matrix + 0.01 * torch.eye(len(matrix)) for layer, matrix in known.matrices.items()}
    write_covariance(replace(known, matrices=other), tmp_path / "other")
    sample = {layer: keys.flip(-1) for layer, keys in known.background.items()}
    write_covariance(replace(known, background=sample), tmp_path / "sample")
    for name in ("other", "sample"):
        with pytest.raises(CovarianceError, match="made with another one"):
            Editor.from_pretrained(tmp_path / "edits", build_model("gpt2"), covariance=tmp_path / name)
    Editor.from_pretrained(tmp_path / "edits", build_model("gpt2")).save_pretrained(tmp_path / "again")
    with pytest.raises(CovarianceError, match="made with another one"):  # a save between does not forget it
        Editor.from_pretrained(tmp_path / "again", build_model("gpt2"), covariance=tmp_path / "other")
    loaded = Editor.from_pretrained(tmp_path / "again", build_model("gpt2"), covariance=tmp_path / "same")
    for one in (editor, loaded):
        one.edit(requests[3:])
    assert torch.equal(logits(loaded.model, tokenizer, requests), logits(editor.model, tokenizer, requests))


def test_a_covariance_from_a_coarser_dtype_serves_the_same_model_and_no_other(tokenizer, tmp_path):
    from coachhook.covariance import CovarianceError

    texts = [f"Ada went {way} to the {place}." for way in ("up", "down") for place in ("mill", "river", "house")] * 9
    compute_covariance(build_model("gpt2").bfloat16(), tokenizer, texts, LAYERS, out=tmp_path / "coarse")
    compute_covariance(build_model("gpt2"), tokenizer, texts, LAYERS, out=tmp_path / "fine")
    assert read_covariance(tmp_path / "coarse", build_model("gpt2")).dtype == "bfloat16"
    assert read_covariance(tmp_path / "fine", build_model("gpt2")).dtype == "float32"
    other = build_model("gpt2")
    with torch.no_grad():
        other.transformer.h[LAYERS[0]].mlp.c_proj.weight.neg_()
    for name, model in (("coarse", other), ("fine", other), ("fine", build_model("gpt2").bfloat16())):
        with pytest.raises(CovarianceError, match="was computed on another model"):
            read_covariance(tmp_path / name, model)


def test_a_damaged_tokenizer_is_named(tokenizer, requests, covariances, tmp_path):
    from coachhook.journal import JournalError

    editor = edit("memit", build_model("gpt2"), tokenizer, requests, covariances)
    editor.save_pretrained(tmp_path)
    (folder,) = tmp_path.glob("tokenizer-*")
    (folder / ".DS_Store").write_bytes(b"of a file browser")
    Editor.from_pretrained(tmp_path, build_model("gpt2")).close()
    path = folder / "tokenizer.json"
    content = path.read_text()
    for damaged in ("", content.replace("Ġ", "G", 1)):
        path.write_text(damaged)
        with pytest.raises(JournalError, match=f"{folder.name}: missing or damaged"):
            Editor.from_pretrained(tmp_path, build_model("gpt2"))
    path.write_text(content)
    Editor.from_pretrained(tmp_path, build_model("gpt2"))


def test_edits_are_not_saved_over_a_file(tokenizer, requests, covariances, tmp_path):
    from coachhook.journal import JournalError

    editor = edit("memit", build_model("gpt2"), tokenizer, requests, covariances)
    (tmp_path / "edits").write_text("mine")
    with pytest.raises(JournalError, match="edits: it is a file; name a directory"):
        editor.save_pretrained(tmp_path / "edits")
    assert (tmp_path / "edits").read_text() == "mine"


def test_a_paraphrase_of_an_earlier_request_is_the_same_fact():
    from coachhook.what_if import contradictions

    first = EditRequest("Ada", "{} was born in", "Paris", paraphrases=("The birthplace of {} is",))
    (found,) = contradictions([[EditRequest("Ada", "The birthplace of {} is", "Oslo")]], [[first]])
    assert found.earlier == first
    assert not contradictions([[EditRequest("Eva", "The birthplace of {} is", "Oslo")]], [[first]])
