"""Which layers to edit, as a first guess: what was published for one model of a family, scaled to the depth at hand."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from coachhook.architectures import ARCHITECTURES, ModelParts


@dataclass(frozen=True)
class PublishedLayers:
    """Layers `first` to `last`, from 0, of a model with `depth` blocks, and where that was published."""

    first: int
    last: int
    depth: int
    source: str


_LLAMA = PublishedLayers(4, 8, 32, "Llama-3-8B, AlphaEdit; Llama-2-7B, EasyEdit")
_QWEN = PublishedLayers(4, 8, 28, "Qwen2-7B and Qwen2.5-7B, EasyEdit")

PUBLISHED: dict[str, PublishedLayers] = {
    "gpt2": PublishedLayers(13, 17, 48, "GPT2-XL, MEMIT"),
    "gptj": PublishedLayers(3, 8, 28, "GPT-J-6B, MEMIT"),
    "llama": _LLAMA,
    "mistral": PublishedLayers(4, 8, 32, "Mistral-7B, EasyEdit"),
    "qwen2": _QWEN,
}
"""MEMIT's layers by model type. Other types have none that we know of: they are given Llama's share of the depth."""


def suggested_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """A suggestion of layers to edit with MEMIT and its kin; no more than that: which are best depends on the model.

    The published layers of the model's family, scaled to its number of blocks. They are exact for the very models in
    `PUBLISHED`; a family without any is given Llama's share.

    Raises:
        ArchitectureError: the model's parts are not found.
    """
    parts = ModelParts(model)
    published = PUBLISHED.get(model.config.model_type) or _by_parts(parts)
    count = len(parts.blocks)
    first, last = (round(layer * count / published.depth) for layer in (published.first, published.last))
    highest = max(count - 2, 0)  # an edit has to be read by a block above it
    return tuple(range(min(first, highest), min(last, highest) + 1))


def _by_parts(parts: ModelParts) -> PublishedLayers:
    """What was published for a family with the same parts."""
    for family, published in PUBLISHED.items():
        if ARCHITECTURES[family] == parts.architecture:
            return published
    return _LLAMA
