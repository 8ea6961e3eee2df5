"""A model's shape from its configuration alone: built on the meta device, which holds no numbers."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from coachhook.architectures import ModelParts, declare_architecture, declared_architecture
from coachhook.errors import CoachHookError

Model = str | os.PathLike | PreTrainedConfig | PreTrainedModel


class ModelShapeError(CoachHookError, ValueError):
    """There is no configuration, or none of a causal language model, or no such dtype."""


def model_shape(model: Model, dtype: str = "auto", architecture: Mapping[str, str] | None = None) -> ModelParts:
    """The parts of a model on the meta device.

    Arguments:
        model: a directory or hub id (only its configuration is read), a configuration, or a loaded model.
        dtype: "float32", "float16", "bfloat16", or "auto": as the model was saved.
        architecture: where a model of an unknown family keeps its parts; a loaded one's own where it is declared.

    Raises:
        ModelShapeError: the model cannot be built from what is given.
        ArchitectureError: its parts are not found.
    """
    config = read_config(model)
    wanted = weights_dtype(config, dtype)
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, dtype=wanted)
    except ValueError as error:
        raise ModelShapeError(f"{config.model_type}: no causal language model ({_first_line(error)})") from None
    if architecture is None and isinstance(model, PreTrainedModel):
        architecture = declared_architecture(model)
    if architecture is not None:
        declare_architecture(empty, architecture)
    return ModelParts(empty)


def weights_dtype(config: PreTrainedConfig, name: str) -> torch.dtype:
    """The dtype of this name; "auto" is that which the configuration was saved with.

    Raises:
        ModelShapeError: there is no such dtype.
    """
    dtype = (getattr(config, "dtype", None) or torch.float32) if name == "auto" else getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelShapeError(f"dtype: {name!r} is unknown; use auto, float32, float16 or bfloat16")
    return dtype


def read_config(model: Model) -> PreTrainedConfig:
    """The configuration of a model, from its directory or hub id, or of a loaded one.

    Raises:
        ModelShapeError: it cannot be read.
    """
    if isinstance(model, PreTrainedConfig):
        return model
    if isinstance(model, PreTrainedModel):
        return model.config
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:  # transformers' errors for a missing, unreachable or foreign model
        problem = f"its configuration cannot be read ({_first_line(error)})"
        raise ModelShapeError(f"{model}: {problem}; give a directory, a hub id or a config.json") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def shallow_config(config: PreTrainedConfig, blocks: int) -> PreTrainedConfig:
    """The same configuration with few blocks."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = blocks
    if getattr(text, "layer_types", None):  # one entry a block, where blocks differ
        text.layer_types = text.layer_types[:blocks]
    return config


def shallow_model(config: PreTrainedConfig, blocks: int, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this configuration but with few blocks; its weights hold one small number, as only its work counts."""
    with torch.device("meta"):  # to draw weights would take longer than a trial
        model = AutoModelForCausalLM.from_config(shallow_config(config, blocks), dtype=dtype)
    model.to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)
    return model.eval()
