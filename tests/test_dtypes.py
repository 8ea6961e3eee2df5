"""Half precision: W_h stays float32 and loses nothing; every method edits, is disabled and is replayed."""

import pytest
import torch
from conftest import LAYERS, build_model
from test_all_methods import settings
from test_editors import logits

from coachhook import Editor, methods
from coachhook.architectures import ModelParts
from coachhook.editors import METHODS
from coachhook.editors.base import TrainedMethod
from coachhook.gates import NoGate, PaperGate
from coachhook.hooks import HookLayers

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(params=HALVES, ids=str)
def dtype(request):
    return request.param


def hook_of(model, gate=None):
    hooks = HookLayers(ModelParts(model), {LAYERS[0]: gate or NoGate()})
    return hooks, hooks[LAYERS[0]]


def test_a_thousand_updates_below_the_resolution_of_the_weights_add_up(dtype):
    parts = ModelParts(build_model("gpt2").to(dtype))
    hooks, hook = hook_of(parts.model)
    weight = parts.base_weight(LAYERS[0])
    # A 64th of the distance to the next number that the dtype holds: added to the weights, each would vanish.
    sizes = weight.float().abs() * torch.finfo(dtype).eps / 64
    generator = torch.Generator().manual_seed(0)
    single, double = torch.zeros(hook.dense().shape), torch.zeros(hook.dense().shape, dtype=torch.float64)
    for _ in range(1000):
        update = sizes * (0.5 + torch.rand(sizes.shape, generator=generator))
        assert torch.equal((weight.float() + update).to(dtype), weight)
        hook.add(update)
        single, double = single + update, double + update.double()
    assert hook.dense().dtype == torch.float32
    assert torch.equal(hook.dense(), single)  # as a literal sum in float32, bit for bit
    torch.testing.assert_close(hook.dense().double(), double, rtol=1e-5, atol=0)
    assert not torch.equal((weight.float() + hook.dense()).to(dtype), weight)
    hooks.close()


@torch.no_grad()
def test_a_small_change_is_not_lost_against_the_modules_output(dtype):
    """(W_h − W0) k to float32's precision, where the difference of the two outputs in half precision has none left."""
    model = build_model("gpt2").to(dtype)
    parts = ModelParts(model)
    _, hook = hook_of(model)
    generator = torch.Generator().manual_seed(0)
    delta = 1e-5 * torch.randn(hook.dense().shape, generator=generator)
    hook.add(delta)
    keys = torch.randn(2, 5, parts.width(LAYERS[0]), generator=generator).to(dtype)
    expected = keys.double() @ delta.double().T
    torch.testing.assert_close(hook.change(keys).double(), expected, rtol=1e-4, atol=1e-9)
    weight = parts.base_weight(LAYERS[0])
    naive = keys @ (weight.float() + delta).to(dtype).T - keys @ weight.T
    assert (naive.double() - expected).norm() > 0.5 * expected.norm()


@torch.no_grad()
def test_the_output_is_rounded_once(dtype):
    model = build_model("llama").to(dtype)
    parts = ModelParts(model)
    module, generator = parts.rewrite_module(LAYERS[0]), torch.Generator().manual_seed(0)
    keys = torch.randn(1, 7, parts.width(LAYERS[0]), generator=generator).to(dtype)
    base = module(keys)
    _, hook = hook_of(model)
    hook.add(0.1 * torch.randn(hook.dense().shape, generator=generator))
    assert torch.equal(module(keys), (base.float() + hook.change(keys)).to(dtype))


def test_where_the_gate_lets_nothing_through_no_bit_changes(dtype, tokenizer, requests):
    for family in ("gpt2", "gptj", "llama"):
        model = build_model(family).to(dtype)
        base = logits(model, tokenizer, requests)
        hooks = HookLayers(ModelParts(model), {layer: PaperGate(1e9) for layer in LAYERS})
        for hook in hooks:
            hook.add(torch.randn(hook.dense().shape, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(logits(model, tokenizer, requests), base)
        hooks.close()


@pytest.mark.parametrize("method", methods())
def test_every_method_in_half_precision(dtype, method, tokenizer, requests, covariances, tmp_path):
    covariance = covariances["gpt2"] if METHODS[method].load().needs_covariance else None
    trained = train(method, dtype, tokenizer, requests, tmp_path)

    def start(model):
        return Editor(model, tokenizer, method, covariance, trained_editor=trained, **settings(method)[0])

    model, other = build_model("gpt2").to(dtype), build_model("gpt2").to(dtype)
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    base = logits(model, tokenizer, requests)
    editor = start(model)
    updates = [editor.edit(batch).update for batch in (requests[:3], requests[3:])]
    edited = logits(model, tokenizer, requests)
    assert edited.dtype == dtype
    assert torch.isfinite(edited).all()
    assert not torch.equal(edited, base)
    with editor.disabled():
        assert torch.equal(logits(model, tokenizer, requests), base)
    assert torch.equal(logits(model, tokenizer, requests), edited)
    again = start(other)
    for update in updates:
        again.replay(update)
    assert torch.equal(logits(other, tokenizer, requests), edited)
    again.rollback(0)
    assert torch.equal(logits(other, tokenizer, requests), base)
    editor.close()
    assert all(torch.equal(*pair) for pair in before)
    tensors = [item for update in updates for item in update.tensors.items()]
    # A sketch is random directions, whose rounding is small beside their own error; nothing learnt is in it.
    kept = [tensor for name, tensor in tensors if tensor.is_floating_point() and not name.startswith("sketch")]
    assert all(torch.isfinite(tensor).all() and tensor.dtype.itemsize >= 4 for tensor in kept)


def train(method, dtype, tokenizer, requests, directory):
    """The method's editor, trained for a moment on the model in half precision; None for methods without one."""
    method_class = METHODS[method].load()
    if not issubclass(method_class, TrainedMethod):
        return None
    config, training = settings(method)
    arguments = method_class.config_class(**config), method_class.training_class(**training), requests
    files = {"out": directory / "editor", "checkpoint": directory / "checkpoint"}
    method_class.train(build_model("gpt2").to(dtype), tokenizer, *arguments, **files, seed=0)
    return files["out"]
