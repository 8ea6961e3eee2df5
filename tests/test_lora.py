"""LoRA: what the adapter computes, how it trains on, and that nothing of it stays on the model."""

import pytest
import torch
from conftest import LAYERS, build_model
from transformers.pytorch_utils import Conv1D

from coachhook import Editor
from coachhook.architectures import ArchitectureError, ModelParts, weight_matrix
from coachhook.editors.base import Update
from coachhook.tokens import pad
from coachhook.tracing import rewrite_inputs

OPTIONS = {"layers": LAYERS, "steps": 12, "learning_rate": 5e-3}
FAMILIES = ("gpt2", "llama")


@torch.no_grad()
def logits(model, tokenizer, requests):
    batch = pad([tokenizer(request.text)["input_ids"] for request in requests], 0)
    return model(batch.ids, attention_mask=batch.real.long(), use_cache=False).logits


def adapters(editor, layer):
    """A and B of a layer's rewrite module."""
    name = next(n for n in editor._method._layers if f".{layer}." in n)
    adapter = editor._method._adapter()
    return adapter[f"A.{name}"].detach(), adapter[f"B.{name}"].detach()


def snapshot(model):
    """All that an adapter could leave behind."""
    modules = {name: (module, type(module), module.training) for name, module in model.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    parameters = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    return modules, hooks, {n: (id(p), flag) for n, (p, flag) in parameters.items()}, set(vars(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_weights_with_the_low_rank_change_written_in(family, tokenizer, requests):
    editor = Editor(build_model(family), tokenizer, "lora", rank=4, lora_alpha=10, **OPTIONS)
    editor.edit(requests[:3])
    editor.edit(requests[3:])
    plain = build_model(family)
    base = logits(plain, tokenizer, requests)
    for layer in LAYERS:
        a, b = adapters(editor, layer)
        module = ModelParts(plain).rewrite_module(layer)
        with torch.no_grad():
            module.weight.add_((10 / 4 * b @ a).T if isinstance(module, Conv1D) else 10 / 4 * b @ a)
    changed = logits(plain, tokenizer, requests)
    assert (logits(editor.model, tokenizer, requests) - changed).abs().max() < 1e-3
    assert (changed - base).abs().max() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_edit_holds(family, tokenizer, requests):
    model = build_model(family)
    editor = Editor(model, tokenizer, "lora", layers=LAYERS, steps=40, learning_rate=5e-3)
    for request in requests[:2]:
        prompt = tokenizer(request.text)["input_ids"]
        target = tokenizer(" " + request.target_new)["input_ids"]

        answers = []
        for step in range(2):
            with torch.no_grad():
                scores = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            answers.append(scores.argmax(-1).tolist())
            if step == 0:
                editor.edit([request])
        assert answers[0] != target == answers[1]


def test_one_adapter_goes_on_training(tokenizer, requests):
    editor = Editor(build_model("gpt2"), tokenizer, "lora", rank=3, **OPTIONS)
    size = editor._method.state_bytes()
    first, second = (editor.edit(batch).update.tensors for batch in (requests[:3], requests[3:]))
    assert first.keys() == second.keys()
    assert size == editor._method.state_bytes() == sum(t.nbytes for t in second.values()) == 4 * 2 * 3 * (48 + 32)
    for name, tensor in second.items():
        assert 0 < (tensor - first[name]).norm() < 2 * first[name].norm()
    for layer in LAYERS:
        a, b = adapters(editor, layer)
        assert torch.linalg.matrix_rank(b @ a) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen", [False, True])
def test_closing_leaves_the_model_as_it_was_found(family, tokenizer, requests, frozen):
    model = build_model(family).requires_grad_(not frozen)
    before, base = snapshot(model), logits(model, tokenizer, requests)
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    editor = Editor(model, tokenizer, "lora", **OPTIONS)
    assert editor.model is model
    editor.edit(requests)
    known = {identity for identity, _ in before[2].values()}
    kept = [parameter for parameter in model.parameters() if id(parameter) in known]
    assert len(kept) == len(known)
    assert all(p.requires_grad is not frozen and p.grad is None for p in kept)
    assert not torch.equal(logits(model, tokenizer, requests), base)
    editor.close()
    assert snapshot(model) == before
    assert list(model.state_dict()) == list(values)
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model, tokenizer, requests), base)


def test_disabled_is_the_base_model_also_when_nested(tokenizer, requests):
    model = build_model("gpt2")
    base = logits(model, tokenizer, requests)
    editor = Editor(model, tokenizer, "lora", **OPTIONS)
    assert torch.equal(logits(model, tokenizer, requests), base)
    editor.edit(requests)
    edited = logits(model, tokenizer, requests)
    with editor.disabled():
        with editor.disabled():
            assert torch.equal(logits(model, tokenizer, requests), base)
        assert torch.equal(logits(model, tokenizer, requests), base)
    assert torch.equal(logits(model, tokenizer, requests), edited)
    assert not torch.equal(edited, base)
    editor._method.reset()
    assert torch.equal(logits(model, tokenizer, requests), base)


def test_replayed_steps_go_on_alike_dropout_included_and_the_global_generator_is_left_alone(tokenizer, requests):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    editor, again, other = (
        Editor(build_model("gpt2"), tokenizer, "lora", seed=seed, dropout=0.3, **OPTIONS) for seed in (1, 1, 2)
    )
    torch.set_rng_state(before)
    first = editor.edit(requests[:3]).update
    torch.rand(3)
    again.replay(first)
    state = torch.get_rng_state()
    second, resumed = (e.edit(requests[3:]).update for e in (editor, again))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in second.tensors.items())
    unlike = other.edit(requests[:3]).update
    assert not any(torch.equal(unlike.tensors[name], tensor) for name, tensor in first.tensors.items())
    editor._method.reset()
    afresh = editor.edit(requests[:3]).update
    assert all(torch.equal(afresh.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_each_step_drops_other_inputs(tokenizer, requests):
    """The second step of a stream whose first changed nothing is not the first step."""
    editor = Editor(build_model("gpt2"), tokenizer, "lora", dropout=0.3, **OPTIONS)
    nothing = Update(editor._method._snapshot())
    first = editor.edit(requests).update.tensors
    editor._method.reset()
    editor.replay(nothing)
    second = editor.edit(requests).update.tensors
    assert not any(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_opening_draws_nothing_from_the_global_generator(tokenizer):
    model = build_model("gpt2")
    before = torch.get_rng_state()
    Editor(model, tokenizer, "lora", layers=LAYERS)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_acts_in_training_only(tokenizer, requests):
    updates = []
    for dropout in (0.0, 0.5):
        editor = Editor(build_model("gpt2"), tokenizer, "lora", dropout=dropout, **OPTIONS)
        updates.append(editor.edit(requests).update.tensors)
        assert torch.equal(logits(editor.model, tokenizer, requests), logits(editor.model, tokenizer, requests))
    assert not any(torch.equal(updates[1][name], tensor) for name, tensor in updates[0].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_rewrite_modules_are_found_behind_the_adapter(family, tokenizer, requests):
    model = build_model(family)
    parts = ModelParts(model)
    modules = {layer: parts.rewrite_module(layer) for layer in LAYERS}
    ids = torch.tensor([tokenizer(requests[0].text)["input_ids"]])
    with torch.no_grad(), rewrite_inputs(parts, [1]) as before:
        model(ids)
    Editor(model, tokenizer, "lora", **OPTIONS)
    for layer, module in modules.items():
        assert parts.rewrite_module(layer) is module
        assert weight_matrix(parts.rewrite_module(layer)).shape == (32, parts.width(layer))
    with torch.no_grad(), rewrite_inputs(parts, [1]) as behind:
        model(ids)
    assert torch.equal(behind[1], before[1])


@pytest.mark.parametrize(
    ("family", "names", "expected"),
    [
        ("gpt2", ["c_attn"], ["attn.c_attn"]),
        ("gpt2", ["mlp.c_proj", "c_fc"], ["mlp.c_fc", "mlp.c_proj"]),
        ("llama", ["q_proj", "v_proj"], ["self_attn.q_proj", "self_attn.v_proj"]),
    ],
)
def test_target_modules_are_named_by_their_ends(family, tokenizer, requests, names, expected):
    model = build_model(family)
    base = logits(model, tokenizer, requests)
    editor = Editor(model, tokenizer, "lora", target_modules=names, **OPTIONS)
    prefix = {"gpt2": "transformer.h", "llama": "model.layers"}[family]
    wanted = [f"{prefix}.{layer}.{name}" for layer in LAYERS for name in expected]
    assert sorted(editor._method._layers) == sorted(wanted)
    editor.edit(requests[:2])
    assert not torch.equal(logits(model, tokenizer, requests), base)


@pytest.mark.parametrize(
    "options", [{"target_modules": ["c_attn", "proj"]}, {"target_modules": ["mlp"]}, {"layers": [9]}]
)
def test_what_cannot_be_adapted_is_refused_before_the_model_is_touched(tokenizer, options):
    model = build_model("gpt2")
    before = snapshot(model)
    with pytest.raises(ArchitectureError):
        Editor(model, tokenizer, "lora", **{"layers": LAYERS, **options})
    assert snapshot(model) == before


def test_the_adapter_of_a_half_precision_model_is_float32(tokenizer, requests):
    model = build_model("gpt2").to(torch.bfloat16)
    base = logits(model, tokenizer, requests)
    editor = Editor(model, tokenizer, "lora", **OPTIONS)
    assert torch.equal(logits(model, tokenizer, requests), base)
    tensors = editor.edit(requests).update.tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert logits(model, tokenizer, requests).dtype == torch.bfloat16
    with editor.disabled():
        assert torch.equal(logits(model, tokenizer, requests), base)


def test_generation_is_the_same_with_and_without_a_cache(tokenizer, requests):
    editor = Editor(build_model("llama"), tokenizer, "lora", **OPTIONS)
    editor.edit(requests)
    ids = torch.tensor([tokenizer(requests[0].text)["input_ids"]])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    cached, whole = (editor.model.generate(ids, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, whole)
