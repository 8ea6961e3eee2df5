"""Whole steps of CoachHooK, its ablations and FT-M, held against the literal step of the equations."""

import hashlib

import literal
import pytest
import torch
from conftest import CONFIGS, LAYERS, build_model

from coachhook import Editor
from coachhook.editors import METHODS
from coachhook.journal import read_step, write_step
from coachhook.targets import TargetSettings
from coachhook.tokens import pad

OURS = ("coachhook", "coachhook-nohook", "memit", "ft-m")  # what all methods share is in test_all_methods
PREFIXES = ("The river. ", "Many years ago in the engine. ")
TARGETS = TargetSettings(3, 0.05, 0.75, 0.0625, 0.5)
WEIGHT = 2.0
OPTIONS = {
    "layers": LAYERS,
    "covariance_weight": WEIGHT,
    "context_templates": PREFIXES,
    "target_steps": TARGETS.steps,
    "target_lr": TARGETS.learning_rate,
    "steps": 3,
}


def make_editor(model, tokenizer, covariances, method, **changes):
    """An editor with the options above, as far as the method has them."""
    known = METHODS[method].load().config_class.model_fields
    options = {name: value for name, value in (OPTIONS | changes).items() if name in known}
    return Editor(model, tokenizer, method, covariances[model.config.model_type], **options)


def deltas(editor):
    return {hook.layer: hook.dense() for hook in editor._method.hooks}


def fingerprint(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def logits(model, tokenizer, requests):
    batch = pad([tokenizer(request.text)["input_ids"] for request in requests], 0)
    return model(batch.ids, attention_mask=batch.real.long(), use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "method", "changes", "alpha", "past_weight"),
    [
        ("gpt2", "coachhook", {}, 2.2, 1.0),
        *((family, "coachhook", {"alpha": 1.4}, 1.4, 1.0) for family in CONFIGS),
        ("gpt2", "coachhook-nohook", {}, None, 1.0),
        ("gptj", "coachhook-nohook", {"past_weight": "lambda"}, None, WEIGHT),
        ("llama", "memit", {}, None, 0.0),
    ],
)
def test_two_steps_equal_two_literal_steps(
    family, tokenizer, requests, covariances, method, changes, alpha, past_weight
):
    model, plain = build_model(family).double(), build_model(family).double()
    editor = make_editor(model, tokenizer, covariances, method, **changes)
    matrices = covariances[family].matrices
    stream = literal.Stream.start(plain, LAYERS, alpha)
    for batch in (requests[:4], requests[4:]):
        editor.edit(batch)
        literal.step(plain, tokenizer, batch, matrices, stream, PREFIXES, TARGETS, WEIGHT, past_weight)
        for layer, delta in deltas(editor).items():
            expected = stream.delta[layer]
            assert (delta - expected).norm() <= 1e-4 * expected.norm()
            assert expected.norm() > 1e-3 * literal.base_weight(plain, layer).norm()
        if alpha is not None:
            assert editor.thresholds() == pytest.approx(stream.alpha, abs=1e-4)
    assert editor.step == 2


def test_memit_forgets_what_the_no_hook_ablation_remembers(tokenizer, requests, covariances):
    """The same first step; from the second on, only the ablation spares the earlier keys."""
    runs = {}
    for method in ("coachhook-nohook", "memit"):
        editor = make_editor(build_model("gpt2"), tokenizer, covariances, method)
        first = editor.edit(requests[:3]).update
        runs[method] = first, editor.edit(requests[3:]).update
    ablation, memit = runs["coachhook-nohook"], runs["memit"]
    assert memit[0].tensors
    for name, tensor in memit[0].tensors.items():
        assert torch.equal(tensor, ablation[0].tensors[name])
    for layer in LAYERS:
        assert f"keys.{layer}" not in memit[0].tensors  # its journal keeps what a later solve needs, and no more
        past = ablation[0].tensors[f"keys.{layer}"]
        spared, forgotten = (run[1].tensors[f"right.{layer}"].T @ past for run in (ablation, memit))
        assert spared.norm() < 0.9 * forgotten.norm()


@pytest.mark.parametrize("method", OURS)
def test_edits_never_touch_the_base_weights_and_can_be_switched_off(family, tokenizer, requests, covariances, method):
    model = build_model(family)
    weights, base = fingerprint(model), logits(model, tokenizer, requests)
    editor = make_editor(model, tokenizer, covariances, method, alpha=1.0)
    for batch in (requests[:2], requests[2:4], requests[4:]):
        editor.edit(batch)
    assert fingerprint(model) == weights
    assert not torch.equal(logits(model, tokenizer, requests), base)
    with editor.disabled():
        assert torch.equal(logits(model, tokenizer, requests), base)
    assert not torch.equal(logits(model, tokenizer, requests), base)
    editor.close()
    assert torch.equal(logits(model, tokenizer, requests), base)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("method", OURS)
def test_replayed_steps_have_the_same_bits_and_go_on_alike(tokenizer, requests, covariances, method, tmp_path):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, method)
    again = make_editor(build_model("gpt2"), tokenizer, covariances, method)
    for step, batch in enumerate((requests[:3], requests[3:5]), 1):
        write_step(tmp_path, step, editor.edit(batch).update)
        again.replay(read_step(tmp_path, step))
    assert again.step == editor.step == 2
    assert again.thresholds() == editor.thresholds()
    editor.edit(requests[5:])
    again.edit(requests[5:])
    for layer, delta in deltas(editor).items():
        assert torch.equal(deltas(again)[layer], delta)
        assert delta.norm() > 0
    assert again.thresholds() == editor.thresholds()
    assert torch.equal(logits(editor.model, tokenizer, requests), logits(again.model, tokenizer, requests))


@pytest.mark.parametrize("wide", [1, 7, 30])
def test_an_update_is_applied_with_the_bits_it_is_stored_with(tokenizer, requests, covariances, wide):
    """Products of the stored factors must not depend on how they lie in memory while editing."""
    editor = make_editor(build_model("llama"), tokenizer, covariances, "coachhook", target_steps=1)
    update = editor.edit((requests * 5)[:wide]).update
    for layer, delta in deltas(editor).items():
        if wide == 30:  # factors would be larger
            assert torch.equal(update.tensors[f"delta.{layer}"], delta)
            continue
        left, right = (update.tensors[f"{side}.{layer}"].clone().contiguous() for side in ("left", "right"))
        assert torch.equal(left @ right.T, delta)


def test_alpha_never_rises_over_a_stream(tokenizer, requests, covariances):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "coachhook")
    before = dict.fromkeys(LAYERS, 2.2)
    for request in (requests * 2)[:9]:
        after = editor.edit([request]).thresholds
        assert all(after[layer] <= before[layer] for layer in LAYERS)
        before = after
    assert all(alpha < 2.2 for alpha in before.values())


def test_one_short_prompt_lowers_alpha_for_ever(tokenizer, requests, covariances):
    short = min(requests, key=lambda request: len(tokenizer(request.text)["input_ids"]))
    count = len(tokenizer(short.text)["input_ids"])
    assert count <= 7
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "coachhook")
    editor.edit([short])
    bound = (count - 1) / count**0.5 + 1e-5
    assert all(alpha <= bound for alpha in editor.thresholds().values())


def test_methods_without_a_gate_have_no_thresholds(tokenizer, requests, covariances):
    for method in ("coachhook-nohook", "memit", "ft-m"):
        editor = make_editor(build_model("gpt2"), tokenizer, covariances, method, target_steps=1)
        assert editor.edit(requests[:1]).thresholds is None


def test_reset_starts_the_stream_again_with_the_same_bits(tokenizer, requests, covariances):
    for method in OURS:
        editor = make_editor(build_model("gpt2"), tokenizer, covariances, method)
        first = editor.edit(requests[:3]).update
        editor.edit(requests[3:])
        editor._method.reset()
        once_more = editor.edit(requests[:3]).update
        assert first.info == once_more.info
        assert all(torch.equal(tensor, once_more.tensors[name]) for name, tensor in first.tensors.items())


def test_fine_tuning_lowers_the_loss_of_its_batch(tokenizer, requests, covariances):
    model = build_model("gpt2")
    losses = []

    def loss():
        total = 0.0
        for request in requests[:3]:
            prompt = tokenizer(request.text)["input_ids"]
            target = tokenizer(" " + request.target_new)["input_ids"]
            with torch.no_grad():
                scores = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
            total -= sum(scores[len(prompt) - 1 + i, token].item() for i, token in enumerate(target))
        return total

    editor = make_editor(model, tokenizer, covariances, "ft-m", steps=8, learning_rate=5e-3)
    losses.append(loss())
    for _ in range(2):
        editor.edit(requests[:3])
        losses.append(loss())
    assert losses[0] - 0.5 > losses[1] > losses[2]
    assert not any(delta.requires_grad for delta in deltas(editor).values())


def test_z_scores_are_those_of_the_base_models_keys(tokenizer, requests, covariances):
    model, plain = build_model("llama"), build_model("llama")
    editor = make_editor(model, tokenizer, covariances, "coachhook")
    editor.edit(requests)
    texts = [request.text for request in requests]
    seen = set()
    for layer, z, real in editor.z_scores(texts):
        seen.add(layer)
        for row, text in enumerate(texts):
            keys = literal.run(plain, tokenizer(text)["input_ids"]).keys[layer]
            expected = literal.z_scores((keys @ deltas(editor)[layer].T).norm(dim=-1))
            torch.testing.assert_close(z[row][real[row]], expected, rtol=1e-3, atol=1e-3)
    assert seen == set(LAYERS)
