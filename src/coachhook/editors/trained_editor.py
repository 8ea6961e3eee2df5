"""The file that a training ends in: one safetensors file that says what it was trained for; no pickle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from coachhook.covariance_file import model_digest
from coachhook.errors import CoachHookError
from coachhook.tensor_files import DamagedFileError, read_tensors, write_tensors

_FORMAT = 1


class TrainedEditorError(CoachHookError, ValueError):
    """A trained editor cannot be made, or is damaged, or belongs to another method, model or other layers."""


@dataclass(frozen=True)
class TrainedEditor:
    """What a training made.

    Attributes:
        network: weights and buffers by name.
        config, training: hyper-parameters it was trained with, as JSON values.
        reached: steps and losses, as JSON values.
        described: what else is needed to build the network, as JSON values.
    """

    network: dict[str, Tensor]
    config: dict
    training: dict
    reached: dict
    described: dict = field(default_factory=dict)


def write_trained_editor(
    path: str | os.PathLike, editor: TrainedEditor, method: str, model: PreTrainedModel, layers: Sequence[int]
) -> None:
    """Write `editor`, trained for `layers` of `model`: whole or not at all; the same training is the same bytes."""
    metadata = {
        "format": _FORMAT,
        "method": method,
        "layers": list(layers),
        "model_digest": model_digest(model, layers),
        "config": editor.config,
        "training": editor.training,
        "reached": editor.reached,
        "described": editor.described,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, editor.network, metadata)


def read_trained_editor(
    path: str | os.PathLike, method: str, model: PreTrainedModel, layers: Sequence[int]
) -> TrainedEditor:
    """Read a trained editor and check that it is `method`'s, for these layers of this model.

    Raises:
        TrainedEditorError: it is not, or the file is damaged.
    """
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != _FORMAT:
            raise TrainedEditorError(f"{path}: not a trained editor of format {_FORMAT}; train it again")
        trained_for, trained_layers = metadata["method"], metadata["layers"]
        parts = (metadata[name] for name in ("config", "training", "reached", "described"))
        editor = TrainedEditor(tensors, *parts)
        digest = metadata["model_digest"]
    except (DamagedFileError, OSError, KeyError) as error:
        raise TrainedEditorError(f"{path}: not a trained editor ({error}); train it again") from None
    if trained_for != method:
        raise TrainedEditorError(f"{path}: was trained for {trained_for}, not for {method}; train one for {method}")
    if trained_layers != list(layers):
        raise TrainedEditorError(
            f"{path}: was trained for layers {trained_layers}, not {list(layers)}; edit those layers or train it again"
        )
    if digest != model_digest(model, layers):
        raise TrainedEditorError(f"{path}: was trained on another model; train it on this one")
    return editor
