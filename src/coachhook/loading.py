"""Loading a base model where there is room for it."""

from __future__ import annotations

import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def load_base_model(
    directory: str | os.PathLike, device: str = "auto", device_map: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a Hugging Face directory or id, in the dtype that its config.json names.

    Arguments:
        device: where the whole model runs; "auto" is the GPU where there is one.
        device_map: how accelerate spreads it over several devices, such as "auto"; `device` then counts for nothing.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if device_map is not None:
        return AutoModelForCausalLM.from_pretrained(directory, device_map=device_map), tokenizer
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(directory).to(device), tokenizer
