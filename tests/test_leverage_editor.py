import literal_leverage
import pytest
import torch
from conftest import CONFIGS, LAYERS, TEXT, build_model
from test_editors import OPTIONS, PREFIXES, TARGETS, WEIGHT, deltas, make_editor

from coachhook import Editor
from coachhook.covariance import Covariance, compute_covariance, read_covariance, write_covariance
from coachhook.editors.coachhook import CoachHook
from coachhook.editors.leverage import LeverageHook
from coachhook.hyperparameters import HyperparameterError
from coachhook.solver import CovarianceError
from coachhook.tokens import pad
from coachhook.tracing import rewrite_inputs

METHOD = "coachhook-leverage"
GATES = {"leverage": (METHOD, {}), "off": ("coachhook-nohook", {})}


def texts(count, seed):
    """Words of the tests' texts in random order."""
    words = sorted({word for text in TEXT for word in text.split()})
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(words), (count, 12), generator=generator)
    return [" ".join(words[i] for i in row) for row in drawn]


def loud(editor):
    """The edits so strong that even a random model's words change."""
    for hook in editor._method.hooks:
        for part in hook.factors._left if hook.factors else [hook.delta]:
            part.mul_(500)
    return editor


@pytest.mark.parametrize("sharpness", [None, 8.0, 20.0])
def test_two_steps_equal_two_literal_steps(family, sharpness, tokenizer, requests, covariances):
    rate, fraction = 0.2, 0.6
    model, plain = build_model(family).double(), build_model(family).double()
    covariance = covariances[family]
    options = {"false_positive_rate": rate, "edited_fraction": fraction, "retrieval_sharpness": sharpness}
    editor = make_editor(model, tokenizer, covariances, METHOD, **options)
    priors = {layer: WEIGHT * covariance.matrices[layer] for layer in LAYERS}
    stream = literal_leverage.Stream(plain, LAYERS, priors, covariance.background, rate, fraction, sharpness)
    for batch in (requests[:4], requests[4:]):
        editor.edit(batch)
        literal_leverage.step(plain, tokenizer, batch, stream, PREFIXES, TARGETS)
        for layer, delta in deltas(editor).items():
            assert (delta - stream.delta[layer]).norm() <= 1e-4 * stream.delta[layer].norm()
        assert editor.thresholds() == pytest.approx(stream.tau, rel=2e-2)  # the sketch is kept in bfloat16


@pytest.mark.parametrize("gate", GATES)
def test_words_are_the_same_alone_and_in_a_batch_with_and_without_cache(family, tokenizer, requests, covariances, gate):
    method, options = GATES[gate]
    model = build_model(family).double()
    prompts = [tokenizer(request.text)["input_ids"] for request in requests]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    base = [model.generate(torch.tensor([ids]), **settings)[0, len(ids) :] for ids in prompts]
    editor = make_editor(model, tokenizer, covariances, method, false_positive_rate=None, **options)
    editor.edit(requests[:3])
    editor.edit(requests[3:])
    loud(editor)
    longest = max(map(len, prompts))
    for search in ({}, {"num_beams": 3}):
        alone = [
            model.generate(torch.tensor([ids]), use_cache=False, **settings, **search)[0, len(ids) :] for ids in prompts
        ]
        if not search:
            assert not all(torch.equal(*pair) for pair in zip(alone, base, strict=True))
        for use_cache in (True, False):
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
            batch = model.generate(ids, attention_mask=mask, use_cache=use_cache, **settings, **search)[:, longest:]
            assert all(torch.equal(*pair) for pair in zip(batch, alone, strict=True))


def test_neither_padding_nor_later_tokens_change_a_decision(family, tokenizer, requests, covariances):
    model = build_model(family)
    editor = make_editor(model, tokenizer, covariances, METHOD, false_positive_rate=None)
    editor.edit(requests)
    decided = {}

    def decisions(ids, mask):
        with torch.no_grad(), rewrite_inputs(editor._method.parts, LAYERS, stop=False) as keys:
            places = (mask.cumsum(-1) - 1).clamp_min(0)
            model(ids, attention_mask=mask, position_ids=places, use_cache=False)
        return {hook.layer: hook.gate.swap(None, None, keys[hook.layer]) for hook in editor._method.hooks}

    rows = [tokenizer(request.text)["input_ids"] for request in requests]
    right = pad(rows, 0)
    whole = decisions(right.ids, right.real.long())
    longest = right.ids.shape[1]
    left_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    left_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    left = decisions(left_ids, left_mask)
    for index, row in enumerate(rows):
        alone = decisions(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))
        for layer in LAYERS:
            decided.setdefault(layer, []).append(alone[layer][0])
            assert torch.equal(whole[layer][index, : len(row)], alone[layer][0])
            assert torch.equal(left[layer][index, longest - len(row) :], alone[layer][0])
            for length in range(1, len(row)):
                shorter = decisions(torch.tensor([row[:length]]), torch.ones(1, length, dtype=torch.long))
                assert torch.equal(shorter[layer][0], alone[layer][0, :length])
    for layer in LAYERS:
        share = torch.cat(decided[layer]).float().mean()
        assert 0 < share < 1


def test_on_unseen_text_it_fires_as_often_as_it_was_told(tokenizer, requests):
    rate = 0.1
    model = build_model("gpt2")
    covariance = compute_covariance(model, tokenizer, TEXT + texts(400, 0), LAYERS, background=2048)
    options = {name: value for name, value in OPTIONS.items() if name not in ("steps", "layers")}
    editor = Editor(model, tokenizer, METHOD, covariance, false_positive_rate=rate, edited_fraction=0.0, **options)
    for batch in (requests[:2], requests[2:4], requests[4:]):
        editor.edit(batch)
    unseen = compute_covariance(model, tokenizer, texts(300, 1), LAYERS, background=4000).background
    for hook in editor._method.hooks:
        assert len(unseen[hook.layer]) > 3000
        fired = hook.gate.swap(None, None, unseen[hook.layer]).float().mean().item()
        assert rate / 1.5 <= fired <= rate * 1.5


def test_edits_fire_and_the_base_answers_elsewhere(family, tokenizer, requests, covariances):
    model = build_model(family)
    ids = torch.tensor([tokenizer("The river runs along the city.")["input_ids"]])
    base = model(ids).logits
    editor = make_editor(model, tokenizer, covariances, METHOD, edited_fraction=0.9, false_positive_rate=None)
    editor.edit(requests[:1])
    assert editor._method.config.false_positive_rate is None
    assert torch.equal(model(ids).logits, base)
    edited = torch.tensor([tokenizer(requests[0].text)["input_ids"]])
    with editor.recorded_swaps() as swaps:
        model(edited)
    assert all(swap.any() for (swap,) in swaps.values())
    with editor.recorded_swaps() as swaps:
        model(ids)
    assert not any(swap.any() for (swap,) in swaps.values())


def test_the_gate_decides_the_class_whatever_the_name(tokenizer, requests, covariances):
    some = make_editor(build_model("gpt2"), tokenizer, covariances, "coachhook", gate="leverage")
    other = make_editor(build_model("gpt2"), tokenizer, covariances, METHOD)
    some.edit(requests[:3])
    other.edit(requests[:3])
    assert type(some._method) is type(other._method) is LeverageHook
    assert some.thresholds() == other.thresholds()
    for layer in LAYERS:
        assert torch.equal(deltas(some)[layer], deltas(other)[layer])
    paper = make_editor(build_model("gpt2"), tokenizer, covariances, METHOD, gate="paper")
    assert type(paper._method) is CoachHook


def test_thresholds_come_back_with_the_step(tokenizer, requests, covariances, tmp_path):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, METHOD)
    thresholds = [editor.thresholds()]
    for batch in (requests[:2], requests[2:4], requests[4:]):
        editor.edit(batch)
        thresholds.append(editor.thresholds())
    assert len({repr(told) for told in thresholds}) >= 3
    editor.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"))
    assert loaded.thresholds() == thresholds[3]
    for step in (2, 0, 1):
        for some in (editor, loaded):
            if some.step >= step:
                some.rollback(step)
                assert some.thresholds() == thresholds[step]


def test_a_step_keeps_two_factors_and_the_keys_root_and_the_first_the_sketch(tokenizer, requests, covariances):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, METHOD, sketch_size=20)
    first, second = editor.edit(requests[:3]).update, editor.edit(requests[3:]).update
    assert {name.split(".")[0] for name in second.tensors} == {"left", "right", "root"}
    assert first.tensors.keys() - second.tensors.keys() == {f"sketch.{layer}" for layer in LAYERS}
    assert first.tensors[f"sketch.{LAYERS[0]}"].shape == (20, 48)
    assert second.tensors[f"right.{LAYERS[0]}"].shape == (48, len(requests) - 3)
    assert second.tensors[f"root.{LAYERS[0]}"].shape == (len(requests) - 3, len(requests))
    editor.rollback(0)
    again = editor.edit(requests[:3]).update
    assert torch.equal(again.tensors[f"sketch.{LAYERS[0]}"], first.tensors[f"sketch.{LAYERS[0]}"])


@pytest.mark.parametrize("family", CONFIGS)
def test_a_rate_cannot_be_asked_for_without_a_sample_of_background_keys(
    family, tokenizer, requests, covariances, tmp_path
):
    bare = Covariance(covariances[family].matrices, {}, covariances[family].tokens, covariances[family].model_digest)
    write_covariance(bare, tmp_path / "old")
    assert read_covariance(tmp_path / "old").background == {}
    options = {name: value for name, value in OPTIONS.items() if name != "steps"}
    for covariance in (tmp_path / "old", bare.matrices):
        with pytest.raises(CovarianceError, match=r"no sample of background keys.*false_positive_rate=None") as caught:
            Editor(build_model(family), tokenizer, METHOD, covariance, false_positive_rate=0.05, **options)
        assert "\n" not in str(caught.value)
    Editor(build_model(family), tokenizer, "coachhook", tmp_path / "old", **options).edit(requests[:1])


@pytest.mark.parametrize("family", CONFIGS)
def test_where_nobody_asks_for_a_rate_and_there_is_no_sample_the_edited_keys_set_the_gate(
    family, tokenizer, requests, covariances, tmp_path, caplog
):
    matrices = covariances[family].matrices
    options = {name: value for name, value in OPTIONS.items() if name != "steps"}
    editor = Editor(build_model(family), tokenizer, covariance=matrices, **options)
    assert editor.method == METHOD  # the default
    assert "no sample of background keys" in caplog.text
    editor.edit(requests[:2])
    smallest = editor.journal[0].update.info["smallest_edited"]
    assert editor.thresholds() == {layer: 0.7 * smallest[str(layer)] for layer in LAYERS}
    editor.save_pretrained(tmp_path)
    editor.close()
    again = Editor.from_pretrained(tmp_path, build_model(family), covariance=matrices)
    again.edit(requests[2:])
    assert again.config.false_positive_rate is None


@pytest.mark.parametrize(
    "options",
    [
        {"retrieval_sharpness": 0},
        {"past_weight": 0.5},
        {"false_positive_rate": 0.0},
        {"false_positive_rate": 1.5},
        {"edited_fraction": 2},
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(tokenizer, covariances, options):
    with pytest.raises(HyperparameterError, match=next(iter(options))):
        make_editor(build_model("gpt2"), tokenizer, covariances, METHOD, **options)


def test_a_step_that_fails_leaves_the_gate_as_it_was(tokenizer, requests, covariances, monkeypatch):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, METHOD)
    editor.edit(requests[:2])
    method = editor._method

    def state():
        """Every number of it: thresholds, ΔW's factors, the sketch, what retrieval answers from."""
        tensors = {}
        for hook in method.hooks:
            gate = hook.gate
            parts = {"left": hook.factors.left, "right": hook.factors.right, "sketch": gate.sketch}
            parts |= {"V": gate.factors.right, "tau": torch.tensor(gate.threshold)}
            parts |= {f"rows.{batch}": rows for batch, rows in enumerate(gate.retrieval._rows)}
            tensors |= {f"{name}.{hook.layer}": part.clone() for name, part in parts.items()}
            assert hook.delta is None
        return tensors

    before, original, written = state(), method._set_gate, []

    def fail_at_the_second(layer, keys, step):
        original(layer, keys, step)
        written.append(layer)
        if len(written) == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(method, "_set_gate", fail_at_the_second)
    with pytest.raises(RuntimeError, match="power cut"):
        editor.edit(requests[2:])
    after = state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    monkeypatch.undo()
    expected = make_editor(build_model("gpt2"), tokenizer, covariances, METHOD)
    for batch in (requests[:2], requests[2:]):
        expected.edit(batch)
    editor.edit(requests[2:])
    assert editor.thresholds() == expected.thresholds()
