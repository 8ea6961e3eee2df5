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
from coachhook.keys import encode_edit
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
    steps=300,
    donors=24,
    lines_per_step=12,
    minimum_recall=0.5,
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
    return compute_covariance(*loaded, halves[0], LAYERS)


@torch.no_grad()
def swapped(editor, documents):
    """Per layer, for which of the documents' tokens the edited weights answer, and which are real; one padded batch."""
    batch = pad([editor.tokenizer(text)["input_ids"] for text in documents], 0)
    with editor.recorded_swaps() as swaps:
        editor.model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
    return {layer: masks[0] for layer, masks in swaps.items()}, batch.real


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
        masks, real = swapped(editor, unseen)
        edited, _ = swapped(editor, [request.text for request in requests])
        subjects = [encode_edit(editor.tokenizer, request).subject_last for request in requests]
    finally:
        editor.close()
    assert real.sum() > 4000
    for layer in LAYERS:
        share = masks[layer][real].float().mean().item()
        fires = edited[layer][torch.arange(len(subjects)), subjects].float().mean().item()
        assert rate / 1.5 <= share <= rate * 1.5
        assert fires > 3 * rate  # it is not as good as random
