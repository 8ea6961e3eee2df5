import hashlib

import literal
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook.architectures import ModelParts
from coachhook.gates import NoGate, PaperGate
from coachhook.hooks import HookLayers
from coachhook.tokens import pad

PROMPTS = [
    "Ada Lovelace was born in",
    "The capital of France is",
    "For many years Grace Hopper worked in the city of",
    "Rome",
]


@pytest.fixture
def ids(tokenizer):
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


def update(model, layer, scale=0.02, seed=0):
    generator = torch.Generator().manual_seed(seed + layer)
    shape = literal.base_weight(model, layer).shape
    return scale * torch.randn(shape, generator=generator)


def hook_layers(model, gate):
    return HookLayers(ModelParts(model), {layer: gate() for layer in LAYERS})


def fingerprint(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def logits(model, batch):
    return model(batch.ids, attention_mask=batch.real.long(), use_cache=False).logits


@pytest.mark.parametrize("mode", ["temporary", "validated"])
@pytest.mark.parametrize("gate", [NoGate, lambda: PaperGate(2.2), lambda: PaperGate(-1e9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_that_hold_the_base_weights_change_no_bit(model, ids, mode, gate, dtype):
    model = model.to(dtype)
    batch = pad(ids, 0)
    base = logits(model, batch)
    hooks = hook_layers(model, gate)
    for hook in hooks:
        hook.add(torch.zeros_like(hook.dense()))
        assert hook.delta is not None  # the hook does run
    with hooks.modes(mode):
        assert torch.equal(logits(model, batch), base)


@pytest.mark.parametrize("mode", ["temporary", "validated"])
def test_a_hook_answers_as_a_literal_copy_of_the_weights(model, ids, mode):
    model = model.double()
    hooks = hook_layers(model, lambda: PaperGate(1.2))
    for hook in hooks:
        hook.add(update(model, hook.layer))
    copies = {hook.layer: literal.Hook(hook.delta.double(), 1.2 if mode == "validated" else None) for hook in hooks}
    with hooks.modes(mode), torch.no_grad():
        together = logits(model, pad(ids, 0))
        given = [model(torch.tensor([row])).logits[0] for row in ids]
    with hooks.modes("off"), torch.no_grad():
        expected = [literal.run(model, row, copies).logits for row in ids]
        base = [literal.run(model, row).logits for row in ids]
    scale = max(row.abs().max() for row in base)
    for place, row in enumerate(expected):
        assert (given[place] - row).abs().max() <= 1e-5 * scale
        assert (together[place, : len(row)] - row).abs().max() <= 1e-5 * scale
    assert any((row - before).abs().max() > 1e-2 * scale for row, before in zip(expected, base, strict=True))
    if mode == "validated":
        assert torch.equal(expected[-1], base[-1])  # one token


def test_each_gate_decision_is_that_of_the_prompt_alone(model, ids):
    """Any amount of padding, left or right, shows the gate the same tokens."""
    hooks = hook_layers(model, lambda: PaperGate(1.2))
    for hook in hooks:
        hook.add(update(model, hook.layer))
    decisions = []
    for hook in hooks:
        swap = hook.gate.swap
        hook.gate.swap = lambda change, real, keys, swap=swap: decisions.append(swap(change, real)) or decisions[-1]

    @torch.no_grad()
    def decide(row, left, right):
        decisions.clear()
        real = torch.tensor([[0] * left + [1] * len(row) + [0] * right])
        positions = (real.cumsum(-1) - 1).clamp_min(0)
        model(
            torch.tensor([[0] * left + row + [0] * right]),
            attention_mask=real,
            position_ids=positions,
            use_cache=False,
        )
        assert not any(swap[0, :left].any() or swap[0, left + len(row) :].any() for swap in decisions)
        return [swap[0, left : left + len(row)].tolist() for swap in decisions]

    swapped = 0
    for row in ids:
        alone = decide(row, 0, 0)
        swapped += sum(map(sum, alone))
        for left, right in ((5, 0), (0, 5), (20, 0), (0, 20), (3, 7)):
            assert decide(row, left, right) == alone
    assert swapped >= 3


def test_the_paper_gate_is_silent_while_decoding_with_a_cache(model, ids):
    """A documented weakness, kept on purpose: a decoding step equals one without hooks on the same cache."""
    hooks = hook_layers(model, lambda: PaperGate(-1e9))
    for hook in hooks:
        hook.add(update(model, hook.layer, scale=0.5))
    prompt, token = torch.tensor([ids[2][:-1]]), torch.tensor([[ids[2][-1]]])
    with torch.no_grad():
        gated = model(token, past_key_values=model(prompt, use_cache=True).past_key_values).logits
        cache = model(prompt, use_cache=True).past_key_values
        with hooks.modes("off"):
            unhooked = model(token, past_key_values=cache).logits
        whole = model(torch.tensor([ids[2]]), use_cache=False).logits[:, -1:]
    assert torch.equal(gated, unhooked)
    assert not torch.allclose(gated, whole, atol=1e-2)  # without a cache the gate sees all tokens


def test_a_mask_that_covers_a_cache_is_cut_to_the_tokens_at_hand(model, ids):
    hooks = hook_layers(model, NoGate)
    real = torch.tensor([[0, 1, 1, 1, 1]])
    with torch.no_grad():
        cache = model(torch.tensor([[0, 5, 6]]), attention_mask=real[:, :3], use_cache=True).past_key_values
        assert [hook.real.tolist() for hook in hooks] == [[[False, True, True]]] * 2
        model(torch.tensor([[7, 8]]), attention_mask=real, past_key_values=cache)
        assert [hook.real.tolist() for hook in hooks] == [[[True, True]]] * 2
        model(torch.tensor([[7, 8]]))  # no mask: nothing stale is left from before
    assert all(hook.real is None or hook.real.shape == (1, 2) for hook in hooks)


def test_modes_come_back_after_an_error(model):
    hooks = hook_layers(model, NoGate)
    hooks[LAYERS[0]].mode = "temporary"

    def fail():
        with hooks.modes("off"):
            assert {hook.mode for hook in hooks} == {"off"}
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [hook.mode for hook in hooks] == ["temporary", "validated"]


def test_closing_leaves_no_trace(model, ids):
    batch = pad(ids, 0)
    base, before = logits(model, batch), fingerprint(model)
    hooks = hook_layers(model, NoGate)
    for hook in hooks:
        hook.add(update(model, hook.layer))
    edited = logits(model, batch)
    assert not torch.equal(edited, base)
    with hooks.modes("off"):
        assert torch.equal(logits(model, batch), base)
    hooks.close()
    assert torch.equal(logits(model, batch), base)
    assert fingerprint(model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tiny_updates_add_up_beside_half_precision_weights(tokenizer):
    model = build_model("gpt2").bfloat16()
    hooks = hook_layers(model, NoGate)
    hook = hooks[LAYERS[0]]
    for _ in range(1000):
        hook.add(torch.full_like(hook.dense(), 1e-6))
    assert hook.dense().dtype == torch.float32
    torch.testing.assert_close(hook.dense(), torch.full_like(hook.dense(), 1e-3), rtol=1e-3, atol=0)
