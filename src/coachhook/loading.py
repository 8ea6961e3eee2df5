"""Loading a base model where there is room for it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import declare_architecture
from coachhook.errors import CoachHookError


class ModelLoadError(CoachHookError, ValueError):
    """A model is missing, damaged, unreachable or no causal language model; `reason` says which."""

    def __init__(self, directory: str | os.PathLike, reason: str):
        super().__init__(
            f"model {directory} cannot be loaded ({reason}); put it back, or remove it to have it made again"
        )
        self.reason = reason


def load_base_model(
    directory: str | os.PathLike,
    device: str = "auto",
    device_map: str | None = None,
    architecture: Mapping[str, str] | None = None,
    dtype: str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a Hugging Face directory or id.

    Arguments:
        device: where the whole model runs; "auto" is the GPU where there is one.
        device_map: how accelerate spreads it over several devices, such as "auto"; `device` then counts for nothing.
        architecture: where a model of an unknown family keeps its parts (see `Architecture`).
        dtype: "float32", "float16", "bfloat16", or "auto": what its config.json names.

    Raises:
        ModelLoadError: there is none, or it is damaged.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, device_map=device_map, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelLoadError(directory, str(error).splitlines()[0]) from None
    model = model if device_map else model.to(device)
    if architecture is not None:
        declare_architecture(model, architecture)
    return model, tokenizer
