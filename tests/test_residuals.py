"""Residuals of families that norm what their MLP gives: held against a plain search for the best output."""

import pytest
import torch
from conftest import LAYERS
from families import FAMILIES, NORMED, build_family
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from coachhook import Editor
from coachhook.architectures import ModelParts
from coachhook.gates import NoGate
from coachhook.hooks import HookLayers
from coachhook.keys import KeyPrompts, LayerSweep
from coachhook.residuals import before_norm, norms_behind

WIDTH = 16


def rms_norm(generator):
    norm = Gemma2RMSNorm(WIDTH, eps=1e-12).double()
    norm.weight.data = 0.8 * torch.randn(WIDTH, generator=generator).double()  # g − 1: some gains are near zero
    return norm.requires_grad_(False)


def layer_norm(generator):
    norm = nn.LayerNorm(WIDTH, eps=1e-12).double()
    norm.weight.data = 1 + 0.8 * torch.randn(WIDTH, generator=generator).double()
    norm.bias.data = torch.randn(WIDTH, generator=generator).double()
    return norm.requires_grad_(False)


def unit(x, centred):
    x = x - x.mean() if centred else x
    return x / x.square().mean().sqrt()


def objective(norm, x, moved, change):
    """‖N(x') − N(x) − R‖² + ε ‖u(x') − u(x)‖², written out; ε is a hundredth of the mean squared gain."""
    centred = isinstance(norm, nn.LayerNorm)
    gain = norm.weight if centred else 1 + norm.weight
    kept = 0.01 * gain.square().mean()
    miss = norm(moved) - norm(x) - change
    return miss.square().sum() + kept * (unit(moved, centred) - unit(x, centred)).square().sum()


def least_by_search(norm, x, change):
    """The objective's minimum over x', from several starts."""
    results, generator = [], torch.Generator().manual_seed(5)
    for scale in (0.0, 0.3, 1.0, 3.0):
        moved = (x + scale * torch.randn(x.shape, generator=generator).double()).requires_grad_()
        optimiser = torch.optim.LBFGS([moved], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def loss(moved=moved, optimiser=optimiser):
            optimiser.zero_grad()
            value = objective(norm, x, moved, change)
            value.backward()
            return value

        optimiser.step(loss)
        results.append(objective(norm, x, moved.detach(), change).item())
    return min(results)


@pytest.mark.parametrize("make", [rms_norm, layer_norm])
@pytest.mark.parametrize("size", [0.01, 0.5, 5.0])
def test_what_is_asked_before_a_norm_brings_its_output_nearest(make, size):
    generator = torch.Generator().manual_seed(int(10 * size))
    norm = make(generator)
    given = 3 * torch.randn(6, WIDTH, generator=generator).double() + 1
    change = size * torch.randn(6, WIDTH, generator=generator).double()
    moved = given + before_norm(norm, given, change).double()
    for x, to, wanted in zip(given, moved, change, strict=True):
        found = objective(norm, x, to, wanted).item()
        assert found <= 1.01 * least_by_search(norm, x, wanted) + 1e-6 * size
        assert found <= objective(norm, x, x, wanted).item()  # never worse than leaving it
    centre = moved.mean(-1) if make is layer_norm else 0 * moved[:, 0]
    before = given.mean(-1) if make is layer_norm else 0 * centre
    torch.testing.assert_close(centre, before, atol=1e-5, rtol=0)
    sizes = [(x - m[:, None]).square().mean(-1) for x, m in ((given, before), (moved, centre))]
    torch.testing.assert_close(*sizes, rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [rms_norm, layer_norm])
def test_no_change_is_asked_for_none(make):
    generator = torch.Generator().manual_seed(0)
    norm, given = make(generator), torch.randn(4, WIDTH, generator=generator).double()
    assert before_norm(norm, given, torch.zeros_like(given)).abs().max() < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_found_where_there_are_some(name):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = build_family(name, dtype=dtype)
        parts = ModelParts(model)
        found = norms_behind(parts, range(5))
        end = "final_layer_norm" if name == "opt-350m" else "post_feedforward_layernorm"
        expected = {i: getattr(block, end) for i, block in enumerate(parts.blocks)} if name in NORMED else {}
        assert found == expected
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", NORMED)
def test_a_step_brings_hidden_states_nearer_than_the_residual_as_it_is(name, tokenizer, requests):
    """One layer, a solve that fits its keys: the output is what `before_norm` promises, and nearer to the target."""
    batch, layer = requests[:4], LAYERS[-1]
    norms, distances = norms_behind(ModelParts(build_family(name)), [layer]), []
    for with_norm in (True, False):
        model = build_family(name)
        width = ModelParts(model).width(layer)
        covariance = {layer: torch.eye(width, dtype=torch.float64)}
        options = {"covariance_weight": 1e-6, "context_templates": (), "target_steps": 4}
        editor = Editor(model, tokenizer, "memit", covariance, **options)
        method, seen = editor._method, {}
        assert set(method._norms) == set(norms)
        method._norms = method._norms if with_norm else {}
        find = method._targets
        method._targets = lambda batch, find=find, seen=seen: seen.setdefault("targets", find(batch))
        before = hidden_states(editor, batch, layer)
        editor.edit(batch)
        after = hidden_states(editor, batch, layer)
        distances.append((seen["targets"] - after).norm(dim=-1) / (seen["targets"] - before).norm(dim=-1))
    pulled_back, naive = distances
    assert (pulled_back < 1).all()
    assert pulled_back.mean() < 0.9 * naive.mean()


@torch.no_grad()
def hidden_states(editor, batch, layer):
    parts = editor._method.parts
    prompts = KeyPrompts.encode(editor.tokenizer, batch, (), torch.device("cpu"))
    hooks = HookLayers(parts, {layer: NoGate()})
    hidden = LayerSweep(parts, hooks, prompts, [layer]).hidden(layer)
    hooks.close()
    return hidden


def test_rome_measures_a_normed_value_by_what_arrives(tokenizer, requests):
    """Its clamp is relative to ‖v‖; behind Gemma's norm v arrives as N(v)."""
    layer, model = LAYERS[-1], build_family("gemma2")
    parts = ModelParts(model)
    covariance = {layer: torch.eye(parts.width(layer), dtype=torch.float64)}
    editor = Editor(model, tokenizer, "rome", covariance, context_templates=(), target_steps=1)
    request = requests[0]
    found = editor._method._target_settings([request])
    values = []
    norm = parts.blocks[layer].post_feedforward_layernorm
    handle = norm.register_forward_hook(lambda module, args, output: values.append(output))
    with torch.no_grad():
        ids = tokenizer(request.text, return_tensors="pt")["input_ids"]
        hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states[layer + 1]
    handle.remove()
    last = len(tokenizer(request.text[: request.subject_span(request.text)[1]])["input_ids"]) - 1
    ratio = (values[0][0, last].norm() / hidden[0, last].norm()).item()
    assert found.clamp == pytest.approx(4.0 * ratio, rel=1e-3)
