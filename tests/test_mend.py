"""MEND against its equations, token by token, and what a trained one does."""

import pytest
import torch
from conftest import LAYERS, build_model
from literal import base_weight, rewrite_module

from coachhook import Editor, EditRequest, Probe
from coachhook.architectures import ModelParts
from coachhook.editors.answers import AnswerBatch
from coachhook.editors.mend import Mend, MendConfig, token_gradients
from coachhook.editors.mend_network import MendNetwork, MendTraining, RunningStatistics
from coachhook.editors.trained_editor import TrainedEditor, TrainedEditorError, write_trained_editor
from coachhook.journal import read_step, write_step
from coachhook.tokens import encode

CONFIG = MendConfig(layers=LAYERS)
SMALL = MendTraining(rank=6, edit_learning_rate=1e-3)
FAMILIES = ("gpt2", "llama")


def random_network(model, seed=0):
    """A hypernetwork that is far from the identity, with statistics, in float64."""
    network = MendNetwork(ModelParts(model), LAYERS, SMALL).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        network.learning_rates.copy_(torch.tensor([0.002, 0.005]))
        for statistics in network.statistics:
            width = len(statistics.mean)
            spread = torch.logspace(-3, 0, width, dtype=torch.float64)
            statistics.observe(spread * torch.randn(50, width, generator=generator, dtype=torch.float64) + spread)
    return network.eval()


def literal_transform(network, index, inputs, gradient):
    """ũ, δ̃ of one token: z + σ(s ⊙ (U V z + b) + o), then the same without σ."""
    z = torch.cat([inputs, gradient])
    statistics = network.statistics[index]
    deviation = torch.sqrt(statistics.squares / (statistics.count - 1))
    z = torch.stack([(z[i] - statistics.mean[i]) / (deviation[i] + 1e-7) for i in range(len(z))])
    for residual, rectified in ((network.first, True), (network.second, False)):
        change = residual.left @ (residual.right @ z) + residual.bias
        change = residual.scale[index] * change + residual.shift[index]
        z = z + (torch.maximum(change, torch.zeros_like(change)) if rectified else change)
    return z[: len(inputs)], z[len(inputs) :]


def literal_gradients(model, tokenizer, request, layer):
    """u and δ of one request, run alone, without padding; the loss is the mean over its answer's tokens."""
    row = encode(tokenizer, request.text, request.target_new)
    seen = {}

    def keep(module, args, output):
        output.retain_grad()
        seen.update(inputs=args[0][0].detach(), output=output)

    handle = rewrite_module(model, layer).register_forward_hook(keep)
    scores = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    handle.remove()
    answer = range(row.answer_start, len(row.ids))
    loss = -sum(scores[t - 1, row.ids[t]] for t in answer) / len(answer)
    loss.backward()
    model.zero_grad()
    return seen["inputs"], seen["output"].grad[0]


def literal_edit(model, tokenizer, network, index, layer, requests):
    """ΔW = −α Σ δ̃ ũᵀ, one token of one request at a time."""
    delta = torch.zeros_like(base_weight(model, layer))
    for request in requests:
        inputs, gradients = literal_gradients(model, tokenizer, request, layer)
        for u, gradient in zip(inputs, gradients, strict=True):
            if gradient.any():
                left, right = literal_transform(network, index, u, gradient)[::-1]
                delta -= network.learning_rates[index] * torch.outer(left, right)
    return delta.detach()


def saved(network, model, folder):
    path = folder / "mend.safetensors"
    training = SMALL.model_dump(mode="json")
    editor = TrainedEditor(network.state_dict(), CONFIG.model_dump(mode="json"), training, {})
    write_trained_editor(path, editor, "Mend", model, LAYERS)
    return path


def test_the_transform_equals_the_literal_one_token_by_token(family):
    network = random_network(build_model(family))
    generator = torch.Generator().manual_seed(1)
    gradients = {
        layer: tuple(torch.randn(9, width, generator=generator, dtype=torch.float64) for width in (48, 32))
        for layer in LAYERS
    }
    with torch.no_grad():
        factors = network.edits(gradients)
        for index, layer in enumerate(LAYERS):
            expected = torch.zeros(32, 48, dtype=torch.float64)
            for inputs, gradient in zip(*gradients[layer], strict=True):
                u, outputs = literal_transform(network, index, inputs, gradient)
                expected -= network.learning_rates[index] * torch.outer(outputs, u)
            left, right = factors[layer]
            torch.testing.assert_close(left @ right.T, expected, rtol=1e-8, atol=1e-8 * expected.norm().item())
            assert expected.norm() > 0.1


def test_the_transform_is_the_identity_of_normalised_gradients_at_first():
    network = MendNetwork(ModelParts(build_model("gpt2")), LAYERS, SMALL)
    gradients = {layer: (torch.randn(5, 48), torch.randn(5, 32)) for layer in LAYERS}
    network.observe(gradients)
    for layer, (left, right) in network.edits(gradients).items():
        inputs, outputs = ((x - x.mean(0)) / (x.std(0) + 1e-7) for x in gradients[layer])
        torch.testing.assert_close(left @ right.T, -1e-3 * outputs.T @ inputs)


def test_training_can_leave_the_identity():
    """A rectifier without a gradient at zero would never start."""
    network = MendNetwork(ModelParts(build_model("gpt2")), LAYERS, SMALL)
    gradients = {layer: (torch.randn(5, 48), torch.randn(5, 32)) for layer in LAYERS}
    network.observe(gradients)
    sum(left.square().sum() for left, _ in network.edits(gradients).values()).backward()
    for residual in (network.first, network.second):
        assert residual.left.grad.norm() > 0
        assert residual.shift.grad.norm(dim=1).min() > 0


def test_running_statistics_are_those_of_all_tokens():
    tokens = 3 + 2 * torch.randn(40, 6, dtype=torch.float64)
    statistics = RunningStatistics(6).double()
    for chunk in tokens.split([1, 25, 14]):
        statistics.observe(chunk)
    expected = (tokens - tokens.mean(0)) / (tokens.std(0) + 1e-7)
    torch.testing.assert_close(statistics.normalise(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_each_request_alone(family, tokenizer, requests, frozen):
    model = build_model(family).double()
    edits = AnswerBatch.encode(tokenizer, [(r.text, r.target_new) for r in requests], torch.device("cpu"))
    model.requires_grad_(not frozen)
    with torch.no_grad():
        found = token_gradients(ModelParts(model), LAYERS, edits)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(True)
    for layer in LAYERS:
        alone = [literal_gradients(model, tokenizer, request, layer) for request in requests]
        for got, expected in zip(found[layer], zip(*alone, strict=True), strict=True):
            kept = torch.cat([e[g.abs().amax(-1) > 0] for e, (_, g) in zip(expected, alone, strict=True)])
            torch.testing.assert_close(got, kept.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_equal_two_literal_steps(family, tokenizer, requests, tmp_path):
    model, plain = build_model(family), build_model(family).double()
    network = random_network(model)
    editor = Editor(model, tokenizer, "mend", trained_editor=saved(network.float(), model, tmp_path), layers=LAYERS)
    network = network.double()
    for batch in (requests[:4], requests[4:]):
        editor.edit(batch)
        expected = {
            layer: literal_edit(plain, tokenizer, network, index, layer, batch) for index, layer in enumerate(LAYERS)
        }
        for layer, delta in expected.items():
            with torch.no_grad():
                base_weight(plain, layer).add_(delta)  # a view of the plain model's weights
            total = base_weight(plain, layer) - base_weight(build_model(family), layer)
            got = editor._method.hooks[layer].dense()
            assert (got - total).norm() <= 2e-3 * total.norm()
            assert total.norm() > 1e-3 * base_weight(plain, layer).norm()


@pytest.mark.parametrize("wide", [1, 6, 30])
def test_an_update_is_small_and_replayed_with_the_same_bits(tokenizer, requests, tmp_path, wide):
    model = build_model("gpt2")
    path = saved(random_network(model).float(), model, tmp_path)
    editor = Editor(model, tokenizer, "mend", trained_editor=path, layers=LAYERS)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = Editor(build_model("gpt2"), tokenizer, "mend", trained_editor=path, layers=LAYERS)
    for step, batch in enumerate(((requests * 5)[:wide], requests[:2]), 1):
        write_step(tmp_path, step, editor.edit(batch).update)
        again.replay(read_step(tmp_path, step))
        stored = read_step(tmp_path, step).tensors
        assert sum(tensor.numel() for tensor in stored.values()) <= len(LAYERS) * 32 * 48
    for layer in LAYERS:
        assert torch.equal(editor._method.hooks[layer].dense(), again._method.hooks[layer].dense())
    assert editor.state_bytes == len(LAYERS) * 32 * 48 * 4
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    editor.rollback(0)
    assert editor.state_bytes == 0


def test_edit_scale_scales_the_edit(tokenizer, requests, tmp_path):
    model = build_model("gpt2")
    path = saved(random_network(model).float(), model, tmp_path)
    deltas = []
    for scale in (1.0, 0.5):
        editor = Editor(model, tokenizer, "mend", trained_editor=path, layers=LAYERS, edit_scale=scale)
        editor.edit(requests[:2])
        deltas.append(editor._method.hooks[1].dense())
        editor.close()
    torch.testing.assert_close(deltas[1], deltas[0] / 2)


# What a trained one does

PLACES = ("Rome", "Paris", "Oslo", "London")
NAMES = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Hopper", "Turing", "Ada", "Alan", "Grace", "Lovelace")


@pytest.fixture(scope="module")
def people():
    """One request for each name, with wordings and probes that tiny models can be trained on."""
    return [
        EditRequest(
            name,
            "{} was born in",
            PLACES[index % 4],
            paraphrases=("Where was {} born?", "The city of {} is"),
            locality=(Probe(f"{other} liked to run along the", "river"), Probe("The capital of France is", "Paris")),
            case_id=index,
        )
        for index, (name, other) in enumerate(zip(NAMES, NAMES[1:] + NAMES[:1], strict=True))
    ]


LATE = MendConfig(layers=(3, 4))  # whatever a random model's early layers are told, its late ones garble
TRAINING = MendTraining(
    steps=60,
    batch_size=1,
    accumulate=2,
    learning_rate=1e-3,
    gradient_clip=1.0,
    validate_every=20,
    rank=16,
    edit_learning_rate=0.1,
    edit_learning_rate_step=1e-3,
    edit_weight=1.0,
)


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tokenizer, people, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = build_model(request.param)
    files = {"out": folder / "mend.safetensors", "checkpoint": folder / "checkpoint", "seed": 0}
    Mend.train(model, tokenizer, LATE, TRAINING, people[:-1], **files)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    return request.param, files["out"]


def answer_loss(model, tokenizer, prompt, answer):
    with torch.no_grad():
        edits = AnswerBatch.encode(tokenizer, [(prompt, answer)], torch.device("cpu"))
        return edits.losses(edits.log_probabilities(ModelParts(model))).item()


def test_a_single_edit_of_an_unseen_request_holds(trained, tokenizer, people):
    family, path = trained
    model, new = build_model(family), people[-1]
    before = answer_loss(model, tokenizer, new.text, new.target_new)
    editor = Editor(model, tokenizer, "mend", trained_editor=path, layers=LATE.layers)
    assert editor.evaluate([new]).reliability == 0.0
    editor.edit([new])
    assert editor.evaluate([new]).reliability == 1.0
    assert answer_loss(model, tokenizer, new.text, new.target_new) < before - 2.5
    with editor.disabled():
        assert answer_loss(model, tokenizer, new.text, new.target_new) == before


def test_training_makes_edits_reach_paraphrases_and_spare_probes(trained, tokenizer, people):
    """Against edits by the hypernetwork before its training, with the same statistics; divergences are in nats."""
    family, path = trained
    model = build_model(family)
    mend = Mend(model, tokenizer, LATE, None, path)
    before = MendNetwork(mend.parts, LATE.layers, TRAINING)
    before.statistics.load_state_dict(mend.network.statistics.state_dict())
    losses, divergences = [], []
    for network in (before.eval(), mend.network):
        mend.network = network
        for person in people:
            probes = [(probe.prompt, probe.answer) for probe in person.locality]
            batch = AnswerBatch.encode(tokenizer, probes, torch.device("cpu"))
            with torch.no_grad():
                base = batch.log_probabilities(mend.parts)
                mend.edit([person])
                divergences.append((base.exp() * (base - batch.log_probabilities(mend.parts))).sum(-1).mean().item())
            losses += [answer_loss(model, tokenizer, text, person.target_new) for text in person.paraphrase_texts]
            mend.reset()
    paraphrases, count = len(losses) // 2, len(people)
    assert sum(losses[paraphrases:]) < sum(losses[:paraphrases]) - 0.5 * paraphrases
    assert sum(divergences[count:]) < 0.5 * count


def test_the_same_seed_gives_the_same_editor(tokenizer, people, tmp_path):
    contents = []
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        files = {"out": tmp_path / name, "checkpoint": tmp_path / "checkpoint", "seed": seed}
        model = build_model("gpt2")
        torch.manual_seed(len(contents))  # must not matter, and is left alone
        drawn = torch.get_rng_state()
        Mend.train(model, tokenizer, CONFIG, TRAINING.model_copy(update={"steps": 2}), people, **files)
        Mend(model, tokenizer, CONFIG, None, files["out"]).close()
        contents.append(files["out"].read_bytes())
        assert torch.equal(torch.get_rng_state(), drawn)
    assert contents[0] == contents[1] != contents[2]


def test_requests_without_probes_are_refused(tokenizer, tmp_path):
    plain = [EditRequest(name, "{} was born in", "Rome") for name in NAMES]
    with pytest.raises(TrainedEditorError, match="requests: none has a locality probe"):
        Mend.train(build_model("gpt2"), tokenizer, CONFIG, TRAINING, plain, out=tmp_path / "o", checkpoint="c", seed=0)


def test_the_editor_of_other_layers_is_refused(trained, tokenizer):
    family, path = trained
    with pytest.raises(TrainedEditorError, match=r"was trained for layers \[3, 4\], not \[0, 1\]"):
        Editor(build_model(family), tokenizer, "mend", trained_editor=path, layers=(0, 1))
