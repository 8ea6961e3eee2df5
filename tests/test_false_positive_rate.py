"""The leverage gate keeps to the rate that the user chose, on a model that recalls and text that it was not set by.

It would catch a τ from the wrong end or the wrong sample of ℓ, a sample of background keys that is not like its text,
ℓ that is another one when the gate decides than when τ is set, padding counted as text, and layers whose keys the
edits below them have moved so far that the sample says nothing of them any more.
"""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coachhook import Editor
from coachhook.base_model import TrainingConfig, train_base_model
from coachhook.covariance import compute_covariance
from coachhook.tokens import pad
from coachhook.world import WorldConfig, make_world, world_requests

WORLD = WorldConfig(subjects=60, relations=3, reserved=20, answers=10, first_names=20, last_names=20, profiles=3)
TRAINING = TrainingConfig(
    vocabulary=600,
    context_length=64,
    width=64,
    layers=4,
    mlp_width=128,
    last_edited_layer=1,
    steps=200,
    donors=16,
    lines_per_step=8,
    minimum_recall=0.3,
)
LAYERS = (0, 1)
SETTINGS = {"covariance_weight": 10, "target_steps": 10, "context_templates": 2, "context_length": 5}


@pytest.fixture(scope="module")
def world():
    return make_world(WORLD, seed=0)


@pytest.fixture(scope="module")
def directory(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "world"
    train_base_model(world.facts, world.lines, TRAINING, out, seed=0)
    return out


@pytest.fixture(scope="module")
def loaded(directory):
    return AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def halves(directory):
    """The model's text in two halves that share no document."""
    documents = sorted(set((directory / "text.txt").read_text(encoding="utf-8").splitlines()))
    random.Random(0).shuffle(documents)
    middle = len(documents) // 2
    assert middle > 300
    return documents[:middle], documents[middle:]


@pytest.fixture(scope="module")
def covariance(loaded, halves):
    return compute_covariance(*loaded, halves[0], LAYERS, background=4096)


@torch.no_grad()
def swapped_shares(editor, documents):
    """Per layer the share of the documents' tokens for which the edited weights answer, in padded batches."""
    found = dict.fromkeys(LAYERS, 0)
    tokens = 0
    for start in range(0, len(documents), 64):
        batch = pad([editor.tokenizer(text)["input_ids"] for text in documents[start : start + 64]], 0)
        with editor.recorded_swaps() as swaps:
            editor.model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        tokens += int(batch.real.sum())
        for layer, (mask,) in swaps.items():
            found[layer] += int((mask & batch.real).sum())
    return {layer: count / tokens for layer, count in found.items()}, tokens


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.1])
def test_on_text_it_was_not_set_by_it_fires_as_often_as_it_was_told(loaded, world, halves, covariance, rate):
    seen, unseen = halves
    assert not set(seen) & set(unseen)
    chosen = {"false_positive_rate": rate, "edited_fraction": 0.0}  # the background alone sets τ
    editor = Editor(*loaded, "coachhook-leverage", covariance, layers=LAYERS, **chosen, **SETTINGS)
    try:
        requests = world_requests(world, count=24, seed=0)
        for start in range(0, len(requests), 8):
            editor.edit(requests[start : start + 8])
        shares, tokens = swapped_shares(editor, unseen)
        own, _ = swapped_shares(editor, [request.text for request in requests])
    finally:
        editor.close()
    assert tokens > 4000
    for layer, share in shares.items():
        assert rate / 1.5 <= share <= rate * 1.5, f"layer {layer}: {share:.3f} of the tokens, {rate} were chosen"
        assert own[layer] > share  # it does fire where the edits are
