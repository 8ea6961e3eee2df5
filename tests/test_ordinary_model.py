"""`editor.model` is an ordinary model: generation of every kind, pipelines, compiling, moving, copies, saving."""

import copy
import logging
import pickle
import threading

import pytest
import torch
from conftest import LAYERS, build_model
from pretend_devices import PretendDevices, device_of
from test_all_methods import settings, trained_editor  # noqa: F401 (a fixture)
from test_editors import logits, make_editor
from transformers import AutoModelForCausalLM, pipeline, set_seed

from coachhook import Editor, methods
from coachhook.editors import METHODS
from coachhook.editors.base import HookLayerMethod
from coachhook.errors import CoachHookError

STRONG = {"learning_rate": 0.1, "target_lr": 2.0, "clamp": 10.0, "target_steps": 8, "covariance_weight": 0.1}


def kinds():
    """One method of each kind of effect: hook layers without a gate, and every other."""
    classes = {name: METHODS[name].load() for name in methods()}
    return ["memit", *(n for n, c in classes.items() if c.effect == "scoped" or not issubclass(c, HookLayerMethod))]


CAUSAL = [method for method in kinds() if METHODS[method].preset.get("gate") != "paper"]


def edit(method, model, tokenizer, requests, covariances, trained=None):
    """An editor whose edits are strong enough to change a tiny model's words."""
    method_class = METHODS[method].load()
    options = settings(method)[0]
    options |= {name: value for name, value in STRONG.items() if name in options}
    covariance = covariances[model.config.model_type] if method_class.needs_covariance else None
    editor = Editor(model, tokenizer, method, covariance, trained_editor=trained, **options)
    editor.edit(requests[:3])
    return editor


def tokens(model, rows, **settings):
    """What is generated behind each row of ids; together, they are padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    length = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    set_seed(0)
    return model.generate(ids, attention_mask=mask, **length, **settings)[:, longest:].tolist()


GREEDY, SAMPLED, BEAMS = {"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 3}


@pytest.mark.parametrize("method", CAUSAL)
def test_generation_gives_the_same_tokens_however_it_is_asked(
    method,
    family,
    tokenizer,
    requests,
    covariances,
    trained_editor,  # noqa: F811
):
    model = build_model(family).double()
    rows = [tokenizer(request.text)["input_ids"] for request in requests[:4]]
    base, by_beams = ([tokens(model, [row], **way)[0] for row in rows] for way in (GREEDY, BEAMS))
    by_chance = tokens(model, rows, **SAMPLED)
    editor = edit(method, model, tokenizer, requests, covariances, trained_editor(method, family))
    for way, before in ((GREEDY, base), (BEAMS, by_beams)):
        alone = [tokens(model, [row], **way)[0] for row in rows]
        assert [tokens(model, [row], **way, use_cache=False)[0] for row in rows] == alone
        assert tokens(model, rows, **way) == alone
        assert tokens(model, rows, **way, use_cache=False) == alone
        assert alone != before
    drawn = tokens(model, rows, **SAMPLED)
    assert tokens(model, rows, **SAMPLED) == drawn == tokens(model, rows, **SAMPLED, use_cache=False)
    assert drawn != by_chance
    with editor.disabled():
        assert [tokens(model, [row], **GREEDY)[0] for row in rows] == base
        assert tokens(model, rows, **SAMPLED) == by_chance


@pytest.mark.parametrize("method", ["memit", "coachhook-leverage"])
def test_a_pipeline_takes_it(method, tokenizer, requests, covariances):
    editor = edit(method, build_model("gpt2"), tokenizer, requests, covariances)
    asked = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "return_full_text": False, "pad_token_id": 0}
    texts = [request.text for request in requests]
    assert len({len(tokenizer(text)["input_ids"]) for text in texts}) > 1  # so that a batch is padded
    generate = pipeline("text-generation", model=editor.model, tokenizer=editor.tokenizer)
    written = [answer[0]["generated_text"] for answer in generate(texts, **asked)]
    for text, answer in zip(texts, written, strict=True):
        ids = tokens(editor.model, [tokenizer(text)["input_ids"]], **GREEDY)[0]
        assert answer.strip() == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert [answer[0]["generated_text"] for answer in generate(texts, **asked, batch_size=4)] == written
    with editor.disabled():
        assert [answer[0]["generated_text"] for answer in generate(texts, **asked)] != written


@pytest.mark.parametrize("method", ["memit", "coachhook-leverage", "coachhook", "lora"])
def test_a_compiled_model_answers_alike(method, tokenizer, requests, covariances):
    """In eager fallback, through an editor opened, edits, rollbacks, disabling and closing after it was compiled."""
    torch._dynamo.reset()
    model = build_model("gpt2")
    base = logits(model, tokenizer, requests)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(logits(compiled, tokenizer, requests), base)
    editor = edit(method, model, tokenizer, requests, covariances)
    for act in (
        lambda: None,
        lambda: editor.edit(requests[3:]),
        lambda: editor.rollback(1),
        lambda: editor.rollback(0),
    ):
        act()
        assert torch.equal(logits(compiled, tokenizer, requests), logits(model, tokenizer, requests))
    assert torch.equal(logits(compiled, tokenizer, requests), base)
    editor.edit(requests)
    assert not torch.equal(logits(compiled, tokenizer, requests), base)
    with editor.disabled():
        assert torch.equal(logits(compiled, tokenizer, requests), base)
    editor.close()
    assert torch.equal(logits(compiled, tokenizer, requests), base)


def test_a_model_compiled_after_its_edits_answers_alike(tokenizer, requests, covariances):
    torch._dynamo.reset()
    model = build_model("gpt2")
    base = logits(model, tokenizer, requests)
    editor = edit("coachhook-leverage", model, tokenizer, requests, covariances)
    edited = logits(model, tokenizer, requests)
    model.forward = torch.compile(model.forward, backend="eager")  # as transformers' own guide does
    assert torch.equal(logits(model, tokenizer, requests), edited)
    assert not torch.equal(edited, base)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    with editor.disabled():
        assert torch.equal(logits(model, tokenizer, requests), base)


@pytest.mark.parametrize("method", kinds())
def test_another_dtype_is_answered_in_and_refused_for_editing(
    method,
    tokenizer,
    requests,
    covariances,
    trained_editor,  # noqa: F811
):
    model = build_model("gpt2")
    editor = edit(method, model, tokenizer, requests, covariances, trained_editor(method, "gpt2"))
    model.to(torch.bfloat16)
    assert logits(model, tokenizer, requests).dtype == torch.bfloat16
    with editor.disabled():
        base = logits(model, tokenizer, requests)
    assert torch.equal(base, logits(build_model("gpt2").to(torch.bfloat16), tokenizer, requests))
    assert not torch.equal(logits(model, tokenizer, requests), base)
    with pytest.raises(CoachHookError, match=r"was float32 on cpu .* is bfloat16 on cpu now; .*move it back"):
        editor.edit(requests)
    editor.rollback(0)
    assert torch.equal(logits(model, tokenizer, requests), base)


@pytest.mark.parametrize("method", kinds())
def test_what_an_editor_holds_follows_the_model_to_another_device(
    method,
    tokenizer,
    requests,
    covariances,
    trained_editor,  # noqa: F811
):
    model = build_model("gpt2")
    editor = edit(method, model, tokenizer, requests, covariances, trained_editor(method, "gpt2"))
    alone = tokenizer(requests[0].text, return_tensors="pt")  # the paper's gate answers otherwise in a padded batch
    edited = model(**alone, use_cache=False).logits
    with PretendDevices():
        there = torch.device("cpu:1")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor._pretended = there
        batch = alone.to(there)
        given = model(**batch, use_cache=False).logits
        assert device_of(given) == there
        with pytest.raises(CoachHookError, match=r"was float32 on cpu .* is float32 on cpu:1 now"):
            editor.edit(requests)
        editor.rollback(1)
        assert torch.equal(model(**batch, use_cache=False).logits, given)
    torch.testing.assert_close(given, edited, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", kinds())
def test_a_deep_copy_holds_the_edits_and_goes_its_own_way(
    method,
    tokenizer,
    requests,
    covariances,
    trained_editor,  # noqa: F811
):
    model = build_model("gpt2")
    base = logits(model, tokenizer, requests)
    editor = edit(method, model, tokenizer, requests, covariances, trained_editor(method, "gpt2"))
    edited = logits(model, tokenizer, requests)
    twin = copy.deepcopy(model)
    with editor.disabled():
        assert torch.equal(logits(twin, tokenizer, requests), edited)
        plain = copy.deepcopy(model)
    editor.edit(requests[3:])
    editor.close()
    assert torch.equal(logits(model, tokenizer, requests), base)
    assert torch.equal(logits(twin, tokenizer, requests), edited)
    assert torch.equal(logits(plain, tokenizer, requests), base)
    with pytest.raises(CoachHookError, match=rf"copy of a model edited by {method}, .*; give the base model"):
        Editor(twin, tokenizer, "ft-m", layers=LAYERS)
    Editor(model, tokenizer, "ft-m", layers=LAYERS).close()
    Editor(copy.deepcopy(model), tokenizer, "ft-m", layers=LAYERS).close()


@pytest.mark.parametrize("method", kinds())
def test_its_own_save_pretrained_writes_the_base_model_and_says_so(
    method,
    tokenizer,
    requests,
    covariances,
    trained_editor,  # noqa: F811
    tmp_path,
    caplog,
):
    model = build_model("gpt2")
    base, weights = logits(model, tokenizer, requests), {k: v.clone() for k, v in model.state_dict().items()}
    editor = edit(method, model, tokenizer, requests, covariances, trained_editor(method, "gpt2"))
    edited = logits(model, tokenizer, requests)
    with caplog.at_level(logging.WARNING, "coachhook"):
        model.save_pretrained(tmp_path)
        state = model.state_dict()
    assert [record.getMessage() for record in caplog.records if "without the edits" in record.getMessage()]
    assert sum("without the edits" in record.getMessage() for record in caplog.records) == 1
    assert list(state) == list(weights)
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer, requests), base)
    assert torch.equal(logits(model, tokenizer, requests), edited)
    editor.close()
    caplog.clear()
    model.state_dict()
    assert not caplog.records


def test_a_pickled_model_holds_the_edits(tokenizer, requests, covariances):
    model = build_model("gpt2")
    make_editor(model, tokenizer, covariances, "coachhook", alpha=1.0).edit(requests)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, tokenizer, requests), logits(model, tokenizer, requests))
    with pytest.raises(CoachHookError, match="copy of a model edited by coachhook"):
        Editor(again, tokenizer, "ft-m", layers=LAYERS)


def test_threads_get_what_one_alone_gets(tokenizer, requests, covariances):
    editor = edit("memit", build_model("gpt2"), tokenizer, requests, covariances)
    rows = [tokenizer(request.text)["input_ids"] for request in requests]
    alone = [tokens(editor.model, [row], **GREEDY) for row in rows]
    given = [None] * len(rows)

    def ask(index):
        given[index] = tokens(editor.model, [rows[index]], **GREEDY)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == alone


def test_disabling_is_bit_for_bit_also_when_nested_and_after_an_error(tokenizer, requests, covariances):
    model = build_model("llama")
    base = logits(model, tokenizer, requests)
    editor = edit("memit", model, tokenizer, requests, covariances)
    edited = logits(model, tokenizer, requests)

    def fail():
        with editor.disabled(), editor.disabled():
            assert torch.equal(logits(model, tokenizer, requests), base)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(logits(model, tokenizer, requests), edited)
    with editor.disabled():
        with editor.disabled():
            pass
        assert torch.equal(logits(model, tokenizer, requests), base)
