import literal
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import EditRequest
from coachhook.architectures import ModelParts
from coachhook.gates import PaperGate
from coachhook.hooks import HookLayers
from coachhook.targets import TargetSettings, optimise_targets

SETTINGS = TargetSettings(6, 0.05, 0.75, 0.0625, 0.5)
PREFIXES = ("The river. ", "Many years ago in the engine. ")


def optimise(model, tokenizer, requests, settings=SETTINGS, prefixes=PREFIXES, layer=LAYERS[-1]):
    return optimise_targets(ModelParts(model), tokenizer, requests, layer, prefixes, settings)


def compare(given, expected, atol):
    for row, (target, hidden, loss) in enumerate(expected):
        scale = hidden.norm().item()
        assert (given.hidden[row] - hidden).norm() <= atol * scale
        assert (given.values[row] - target).norm() <= atol * scale
        assert given.losses[row].item() == pytest.approx(loss, abs=atol * max(1, abs(loss)))


def literal_targets(model, tokenizer, requests, settings=SETTINGS, prefixes=PREFIXES, layer=LAYERS[-1], hooks=None):
    return [literal.find_target(model, tokenizer, request, layer, prefixes, settings, hooks) for request in requests]


def test_a_batch_of_targets_equals_one_request_after_the_other(model, tokenizer, requests):
    model = model.double()
    given = optimise(model, tokenizer, requests)
    expected = literal_targets(model, tokenizer, requests)
    compare(given, expected, 1e-5)
    moved = [(target - hidden).norm() / hidden.norm() for target, hidden, _ in expected]
    assert min(moved) > 1e-3


def test_float32_agrees_as_far_as_float32_goes(model, tokenizer, requests):
    compare(optimise(model, tokenizer, requests[:3]), literal_targets(model, tokenizer, requests[:3]), 1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        TargetSettings(5, 0.5, 0.05, 0.0625, 0.5),  # the projection binds from the first step on
        TargetSettings(5, 0.05, 0.75, 5.0, 0.0),
        TargetSettings(5, 0.05, 0.75, 0.0, 50.0),
    ],
    ids=["clamp", "kl", "decay"],
)
def test_every_term_is_that_of_the_equation(tokenizer, requests, settings):
    model = build_model("llama").double()
    expected = literal_targets(model, tokenizer, requests[:3], settings)
    compare(optimise(model, tokenizer, requests[:3], settings), expected, 1e-5)
    for target, hidden, _ in expected:
        assert (target - hidden).norm() <= settings.clamp * hidden.norm() * (1 + 1e-6)
    if settings.clamp == 0.05:
        target, hidden, _ = expected[0]
        assert (target - hidden).norm() == pytest.approx(0.05 * hidden.norm().item(), rel=1e-5)


def test_each_request_stops_by_itself(tokenizer, requests):
    """Requests whose loss falls below the stop loss keep their δ while the others go on."""
    model = build_model("gpt2").double()
    free = [TargetSettings(steps, 0.02, 4.0, 0.0, 0.5) for steps in (0, 10)]
    start, end = (optimise(model, tokenizer, requests, settings).losses for settings in free)
    fastest = (start - end).argmax()
    stop = ((start[fastest] + end[fastest]) / 2).item()
    settings = TargetSettings(10, 0.02, 4.0, 0.0, 0.5, stop_loss=stop)
    expected = literal_targets(model, tokenizer, requests, settings)
    compare(optimise(model, tokenizer, requests, settings), expected, 1e-5)
    target, hidden, loss = expected[fastest]
    assert end[fastest] + 1e-3 < loss < stop < start[fastest]
    assert (target - hidden).norm() > 1e-3
    assert any(loss >= stop for _, _, loss in expected)


def test_targets_are_found_with_the_earlier_batches_validated_hooks(model, tokenizer, requests):
    model = model.double()
    hooks = HookLayers(ModelParts(model), {layer: PaperGate(1.3) for layer in LAYERS})
    generator = torch.Generator().manual_seed(5)
    for hook in hooks:
        hook.add(0.05 * torch.randn(hook.dense().shape, generator=generator))
    with hooks.modes("validated"):
        given = optimise(model, tokenizer, requests)
    copies = {hook.layer: literal.Hook(hook.delta.double(), 1.3) for hook in hooks}
    hooks.close()
    compare(given, literal_targets(model, tokenizer, requests, hooks=copies), 1e-4)
    unhooked = optimise(model, tokenizer, requests)
    assert ((given.values - unhooked.values).norm(dim=-1) > 1e-2).any()


def test_no_prefixes_and_a_subject_of_one_token_at_the_start(model, tokenizer, requests):
    model = model.double()
    short = EditRequest("Rome", "{} is", "Paris")
    assert len(tokenizer("Rome")["input_ids"]) <= 2
    for batch in ([short], [*requests[:2], short]):
        for layer in (0, 3):
            given = optimise(model, tokenizer, batch, prefixes=(), layer=layer)
            compare(given, literal_targets(model, tokenizer, batch, prefixes=(), layer=layer), 1e-5)


def test_a_target_does_not_depend_on_its_neighbours_in_the_batch(tokenizer, requests):
    model = build_model("gptj").double()
    together = optimise(model, tokenizer, requests)
    for row, request in enumerate(requests):
        alone = optimise(model, tokenizer, [request])
        assert (together.values[row] - alone.values[0]).norm() <= 1e-5 * alone.values[0].norm()


def test_optimising_lowers_the_loss_and_leaves_no_gradients(tokenizer, requests):
    model = build_model("gpt2")
    first = optimise(model, tokenizer, requests, TargetSettings(0, 0.01, 0.75, 0.0, 0.0))
    later = optimise(model, tokenizer, requests, TargetSettings(20, 0.01, 0.75, 0.0, 0.0))
    assert torch.equal(first.values, first.hidden)
    assert (later.losses < first.losses).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
