"""FT-M and FT-L, held against plain loops that write into the weights of a second model."""

import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.architectures import ModelParts
from coachhook.editors import METHODS

FAMILIES = ("gpt2", "llama")


def weights(model):
    parts = ModelParts(model)
    return [parts.rewrite_module(layer).weight for layer in LAYERS]


def token_ids(tokenizer, request):
    return tokenizer(request.text)["input_ids"], tokenizer(" " + request.target_new)["input_ids"]


def cross_entropy(model, tokenizer, batch):
    """FT-M: mean over all target tokens, each after the tokens before it."""
    terms = []
    for request in batch:
        prompt, target = token_ids(tokenizer, request)
        scores = model(torch.tensor([prompt + target]), use_cache=False).logits[0].log_softmax(-1)
        terms += [-scores[len(prompt) + i - 1, token] for i, token in enumerate(target)]
    return sum(terms) / len(terms)


def last_token_loss(model, tokenizer, batch):
    """FT-L: per request the mean over its target tokens, all from the prompt's last token; the mean of these."""
    total = 0
    for request in batch:
        prompt, target = token_ids(tokenizer, request)
        scores = model(torch.tensor([prompt]), use_cache=False).logits[0, -1].log_softmax(-1)
        total = total - sum(scores[token] for token in target) / len(target)
    return total / len(batch)


LOSSES = {"ft-m": cross_entropy, "ft-l": last_token_loss}


def literal_batch(model, loss, steps, learning_rate, stop_loss, limit):
    """Train the rewrite modules of `model` in place."""
    trained = weights(model)
    before = [weight.detach().clone() for weight in trained]
    optimiser = torch.optim.Adam(trained, lr=learning_rate)
    for _ in range(steps):
        value = loss(model)
        if value < stop_loss:
            break
        for parameter in model.parameters():
            parameter.grad = None
        value.backward()
        optimiser.step()
        if limit is not None:
            for weight, start in zip(trained, before, strict=True):
                weight.data = torch.maximum(torch.minimum(weight.data, start + limit), start - limit)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "limit"), [("ft-m", None), ("ft-m", 3e-4), ("ft-l", None), ("ft-l", 3e-4)])
def test_two_batches_equal_two_literal_ones(family, tokenizer, requests, method, limit):
    """To 1e-3 of the change: the editor keeps it in float32, the literal loop in float64."""
    model, plain = build_model(family).double(), build_model(family).double()
    editor = Editor(
        model, tokenizer, method, layers=LAYERS, steps=6, learning_rate=2e-4, stop_loss=0, norm_constraint=limit
    )
    start = [weight.detach().clone() for weight in weights(plain)]
    for batch in (requests[:4], requests[4:]):
        editor.edit(batch)
        literal_batch(plain, lambda m, batch=batch: LOSSES[method](m, tokenizer, batch), 6, 2e-4, 0, limit)
        for hook, weight, base in zip(editor._method.hooks, weights(plain), start, strict=True):
            expected = (weight - base).detach()
            expected = expected.T if family == "gpt2" else expected
            assert (hook.dense() - expected).norm() <= 1e-3 * expected.norm()
            assert expected.abs().max() > 2e-4


def test_the_two_losses_differ_only_by_where_the_tokens_are_taken_from(tokenizer, requests):
    """A target of one token is the same to both."""
    single = [r for r in requests if len(token_ids(tokenizer, r)[1]) == 1]
    longer = [r for r in requests if len(token_ids(tokenizer, r)[1]) > 1]
    for batch, alike in ((single, True), (longer, False)):
        updates = []
        for method in LOSSES:
            editor = Editor(build_model("gpt2"), tokenizer, method, layers=[1], steps=2, norm_constraint=None)
            updates.append(editor.edit(batch).update.tensors["delta.1"])
        assert torch.allclose(*updates, atol=1e-6) == alike


def test_the_constraint_holds_in_each_batch_and_starts_anew_with_the_next(tokenizer, requests):
    editor = Editor(build_model("gpt2"), tokenizer, "ft-l", layers=LAYERS, steps=5, stop_loss=0)
    assert editor.config.norm_constraint == editor.config.learning_rate == 5e-4
    for _ in range(2):
        update = editor.edit(requests[:3]).update
        for delta in update.tensors.values():
            assert 4.9e-4 < delta.abs().max() <= 5e-4 * (1 + 1e-5)
    assert all(hook.dense().abs().max() > 9e-4 for hook in editor._method.hooks)


@pytest.mark.parametrize("method", LOSSES)
def test_a_batch_that_is_known_already_changes_nothing(tokenizer, requests, method):
    model = build_model("gpt2")
    with torch.no_grad():
        loss = LOSSES[method](model, tokenizer, requests).item()
    for stop_loss, changed in ((loss + 1e-3, False), (loss - 1e-3, True)):
        editor = Editor(model, tokenizer, method, layers=[1], steps=1, stop_loss=stop_loss)
        assert (editor.edit(requests).update.tensors["delta.1"].abs().max() > 0) == changed
        editor.close()


@pytest.mark.parametrize("method", LOSSES)
def test_each_lowers_its_own_loss_from_batch_to_batch(tokenizer, requests, method):
    editor = Editor(
        build_model("llama"), tokenizer, method, layers=LAYERS, steps=8, learning_rate=5e-3, norm_constraint=None
    )
    losses = []
    for _ in range(3):
        with torch.no_grad():
            losses.append(LOSSES[method](editor.model, tokenizer, requests[:3]).item())
        editor.edit(requests[:3])
    assert losses[0] - 0.5 > losses[1] > losses[2]
    assert all(parameter.grad is None for parameter in editor.model.parameters())
    assert not any(hook.delta.requires_grad for hook in editor._method.hooks)


def test_an_edit_that_fails_leaves_the_earlier_ones(tokenizer, requests, monkeypatch):
    editor = Editor(build_model("gpt2"), tokenizer, "ft-m", layers=[1], steps=2)
    editor.edit(requests[:2])
    (hook,) = editor._method.hooks
    before = hook.dense().clone()

    def fail(self):
        raise MemoryError

    monkeypatch.setattr(torch.optim.Adam, "zero_grad", fail)  # after the last step
    with pytest.raises(MemoryError):
        editor.edit(requests[2:])
    assert torch.equal(hook.dense(), before)
    assert editor.step == 1


def test_both_state_their_own_paper_and_objective():
    classes = {name: METHODS[name].load() for name in LOSSES}
    assert "Knowledge Editing for Large" in classes["ft-m"].paper
    assert "Locating and Editing" in classes["ft-l"].paper
    for name, objective in (("ft-m", "target"), ("ft-l", "last_prompt_token")):
        assert METHODS[name].preset == {"loss": objective}
        assert classes[name].config_class(layers=[0]).loss == objective
