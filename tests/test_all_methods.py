"""What every registered method must do, on a tiny GPT-2 and a tiny Llama; a new method needs no line here.

Hyper-parameters are those of config/methods/<name>.yaml, with few steps and a tiny model's values where it gives none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from conftest import LAYERS, build_model
from test_editors import fingerprint
from transformers import PreTrainedModel

from coachhook import Editor, EditRequest, methods
from coachhook.covariance import CovarianceError
from coachhook.editors import METHODS
from coachhook.editors.base import TrainedMethod
from coachhook.journal import pack_step
from coachhook.tokens import pad

CONFIG = Path(__file__).parents[1] / "config" / "methods"
OFTEN = 0.3  # the covariance's texts are all about the edited subjects, so ordinary text's keys are theirs
MODELS_OWN = {"covariance_weight": 2.0, "target_steps": 3, "context_templates": 1, "context_length": 3}
STEPS = 4  # at most, of whatever takes steps or happens every so many
FAMILIES = ("gpt2", "llama")


def small(values):
    """A file's hyper-parameters for a tiny model: few steps, and as many layers as there are covariances."""
    filled = {name: MODELS_OWN.get(name) if value is None else value for name, value in values.items()}
    for name, value in filled.items():
        if name.endswith(("steps", "every")):
            filled[name] = min(value, STEPS)
    if "false_positive_rate" in filled:
        filled["false_positive_rate"] = OFTEN
    if "layers" in filled:
        filled["layers"] = LAYERS[-len(filled["layers"] or LAYERS) :]
    return filled


@functools.cache
def settings(method):
    entry = yaml.safe_load((CONFIG / f"{method}.yaml").read_text(encoding="utf-8"))
    return small(entry["hyperparameters"]), small(entry.get("training", {}))


@pytest.fixture(scope="session")
def trained_editor(tokenizer, requests, tmp_path_factory):
    """File of a method's editor for a family, trained for a moment; None for methods that are not trained."""
    directory = tmp_path_factory.mktemp("trained")

    @functools.cache
    def train(method, family):
        method_class = METHODS[method].load()
        if not issubclass(method_class, TrainedMethod):
            return None
        config, training = settings(method)
        files = {"out": directory / f"{method}-{family}", "checkpoint": directory / f"{method}-{family}.checkpoint"}
        arguments = method_class.config_class(**config), method_class.training_class(**training), requests
        method_class.train(build_model(family), tokenizer, *arguments, **files, seed=0)
        return files["out"]

    return train


@dataclass
class Story:
    """One editor that has edited three batches, and what it showed on the way.

    Attributes:
        open: puts another editor like it on a model.
        new_model: the base model once more.
        outputs: logits of all prompts and an unrelated one, as base model and after each batch.
        updates: the bytes of each step's file.
        state_bytes: after each batch.
        saved: where it was saved after the second batch.
        model_before: the model's fingerprint, its parameters and copies of them, from before the editor.
    """

    editor: Editor
    open: Callable[[PreTrainedModel], Editor]
    new_model: Callable[[], PreTrainedModel]
    covariance: object
    batches: list[list[EditRequest]]
    saved: Path
    model_before: tuple
    outputs: list = field(default_factory=list)
    updates: list = field(default_factory=list)
    state_bytes: list = field(default_factory=list)

    @torch.no_grad()
    def show(self, editor):
        """Logits of every request's prompt, in order, and of an unrelated text; padding left out."""
        texts = [request.text for batch in self.batches[:2] for request in batch] + ["The river runs along the city."]
        batch = pad([editor.tokenizer(text)["input_ids"] for text in texts], 0)
        logits = editor.model(batch.ids, attention_mask=batch.real.long(), use_cache=False).logits
        return [row[real] for row, real in zip(logits, batch.real, strict=True)]


@pytest.fixture(scope="module", params=[(m, f) for m in methods() for f in FAMILIES], ids="-".join)
def story(request, tokenizer, requests, covariances, trained_editor, tmp_path_factory):
    method, family = request.param
    covariance = covariances[family] if METHODS[method].load().needs_covariance else None
    trained = trained_editor(method, family)

    def start(model):
        return Editor(model, tokenizer, method, covariance, trained_editor=trained, **settings(method)[0])

    model = build_model(family)
    parameters = list(model.parameters())
    before = fingerprint(model), parameters, [parameter.detach().clone() for parameter in parameters]
    batches = [requests[:3], requests[3:], requests[:1]]
    saved = tmp_path_factory.mktemp(method) / "saved"
    new_model = functools.partial(build_model, family)
    told = Story(start(model), start, new_model, covariance, batches, saved, before)
    told.outputs.append(told.show(told.editor))
    for step, batch in enumerate(batches, 1):
        told.updates.append(pack_step(step, told.editor.edit(batch).update))
        told.outputs.append(told.show(told.editor))
        told.state_bytes.append(told.editor.state_bytes)
        if step == 2:
            told.editor.save_pretrained(saved)
    yield told
    told.editor.close()


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def all_differ(some, others):
    return not any(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("method", methods())
def test_it_says_what_it_is(method):
    method_class = METHODS[method].load()
    assert any(character.isdigit() for character in method_class.paper)  # the year
    assert method_class.growing_state
    assert method_class.effect in ("everywhere", "scoped")
    assert all(info.description for info in method_class.config_class.model_fields.values())


def test_an_edit_changes_the_answers_to_its_prompts(story):
    base, first = story.outputs[:2]
    assert all_differ(first[:3], base[:3])
    for logits in first:
        assert torch.isfinite(logits).all()
    if story.editor._method.effect == "everywhere":
        assert not torch.equal(first[-1], base[-1])


def test_a_disabled_editor_is_the_base_model(story):
    with story.editor.disabled():
        assert same(story.show(story.editor), story.outputs[0])
    assert same(story.show(story.editor), story.outputs[3])


def test_saved_edits_answer_alike_and_go_on_alike(story):
    loaded = Editor.from_pretrained(story.saved, story.new_model())
    assert loaded.step == 2
    assert loaded.config == story.editor.config
    assert loaded.state_bytes == story.state_bytes[1]
    assert same(story.show(loaded), story.outputs[2])
    if story.covariance is not None:
        with pytest.raises(CovarianceError, match="needs one to edit further"):
            loaded.edit(story.batches[2])
        loaded.close()
        loaded = Editor.from_pretrained(story.saved, loaded.model, covariance=story.covariance)
    assert pack_step(3, loaded.edit(story.batches[2]).update) == story.updates[2]
    assert same(story.show(loaded), story.outputs[3])


def test_the_same_seed_gives_the_same_bytes(story):
    again = story.open(story.new_model())
    for step, batch in enumerate(story.batches, 1):
        assert pack_step(step, again.edit(batch).update) == story.updates[step - 1]
    assert same(story.show(again), story.outputs[3])


def test_a_batch_builds_on_the_earlier_ones(story):
    base, first, second = story.outputs[:3]
    alone = story.open(story.new_model())
    alone.edit(story.batches[1])
    assert not same(story.show(alone), second)
    assert all_differ(second[:3], base[:3])  # the first batch still has an effect
    assert all_differ(second[3:6], base[3:6])
    assert not same(second, first)


def test_its_state_grows_as_it_says(story):
    first, second, third = story.state_bytes
    assert first > 0
    if story.editor._method.growing_state != "nothing":
        assert second > first
        return
    editor, sizes = story.open(story.new_model()), []
    for batch in 2 * story.batches:
        editor.edit(batch)
        sizes.append(editor.state_bytes)
    assert sizes[:3] == [first, second, third]
    assert max(sizes[3:]) <= max(sizes[:3])


def test_rollback_gives_the_earlier_outputs_and_goes_on_alike(story):
    editor = story.editor
    for step in (2, 1, 0):
        editor.rollback(step)
        assert editor.step == step
        assert same(story.show(editor), story.outputs[step])
    for step, batch in enumerate(story.batches, 1):
        assert pack_step(step, editor.edit(batch).update) == story.updates[step - 1]
        assert same(story.show(editor), story.outputs[step])


def test_the_base_weights_are_never_written(story):
    before, parameters, copies = story.model_before
    assert all(torch.equal(*pair) for pair in zip(parameters, copies, strict=True))
    model = story.editor.model
    story.editor.close()
    assert fingerprint(model) == before  # names and bytes
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert same(story.show(story.editor), story.outputs[0])
