"""What an editor leaves on its model while it is open, so that nobody takes an edited model for a plain one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import nn
from transformers import PreTrainedModel

from coachhook.errors import CoachHookError
from coachhook.logs import logger

if TYPE_CHECKING:
    from coachhook.editor import Editor

_NAME = "_coachhook_claim"
_open: WeakSet[PreTrainedModel] = WeakSet()


class EditorError(CoachHookError, ValueError):
    """What is asked does not fit the state of the editor or of its model."""


def refuse_edited(model: PreTrainedModel) -> None:
    """Refuse a model that is not plain.

    Raises:
        EditorError: an editor is open on it, or it is a copy of an edited model and holds the edits.
    """
    if model in _open:
        raise EditorError("model: another editor is on it; close() that one first (it is Editor.of(model))")
    claim = getattr(model, _NAME, None)
    if claim is not None:
        raise EditorError(
            f"model: it is a copy of a model edited by {claim.method}, and holds those edits; give the base model"
        )


def claim(model: PreTrainedModel, editor: Editor) -> None:
    """Mark `model` as edited; deep copies hold the edits, and so the mark."""
    setattr(model, _NAME, _Claim(model, editor))
    _open.add(model)
    if "torch._dynamo" in sys.modules:  # what was compiled before would run on without the edits: hooks are not guarded
        torch.compiler.reset()


def release(model: PreTrainedModel) -> None:
    """Take the mark off."""
    _open.discard(model)
    getattr(model, _NAME).handle.remove()
    delattr(model, _NAME)


def claimed_by(model: PreTrainedModel) -> Editor | None:
    """The editor that is open on `model`; None where there is none."""
    return getattr(model, _NAME).editor if model in _open else None


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Inside, no module of the model is in training mode, so dropout changes nothing; then each is as it was."""
    training = stop_training(model)
    try:
        yield
    finally:
        go_on_training(training)


def stop_training(model: PreTrainedModel) -> list[nn.Module]:
    """Take every module of the model out of training mode; those that were in it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    return training


def go_on_training(modules: Iterable[nn.Module]) -> None:
    """Put modules back into training mode, as `stop_training` found them."""
    for module in modules:
        module.training = True


def check_unmoved(model: PreTrainedModel) -> None:
    """Refuse to edit a model elsewhere than where its editor was made.

    Raises:
        EditorError: it has another dtype, or is on another device.
    """
    then, now = getattr(model, _NAME).placed, _place(model)
    if now != then:
        raise EditorError(
            f"model: it was {then} when the editor was made, and is {now} now; it answers with its edits there too, "
            "but move it back to edit it further"
        )


def _place(model: PreTrainedModel) -> str:
    return f"{str(model.dtype).removeprefix('torch.')} on {model.device}"


class _Claim:
    """Says once that the model's own weights, which others save, are those without the edits."""

    def __init__(self, model: PreTrainedModel, editor: Editor):
        self.editor, self.method, self.placed = editor, editor.method, _place(model)
        self.handle = model.register_state_dict_pre_hook(self._warn)
        self._warned = False

    def __getstate__(self) -> dict:
        return vars(self) | {"editor": None}  # a copy of the model holds edits, but no editor

    def _warn(self, model: nn.Module, prefix: str, keep_vars: bool) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the weights of this model are the base model's, without the edits: save those with "
                "editor.save_pretrained(directory), or write them into weights with editor.merge_and_unload()"
            )
