"""Whether a model still reads ordinary text as its base model does, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.metrics.reading import teacher_forced
from coachhook.progress import tell
from coachhook.tokens import EncodedPrompt, pad_id

MAX_TOKENS = 1024


@torch.no_grad()
def argmax_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[int, ...]]:
    """Per text the most probable token at every place but the first.

    The first 1,024 tokens are read, or as many as the context holds; text by text, as their logits are large.
    """
    parts = ModelParts(model)
    longest = min(MAX_TOKENS, parts.context_length)
    rows = [EncodedPrompt(tuple(tokenizer(text)["input_ids"][:longest]), 1) for text in texts]
    found = []
    for row in rows:
        found.append(teacher_forced(parts, [row], pad_id(tokenizer))[0] if len(row.ids) > 1 else ())
        tell("reading texts", len(found), len(rows))
    return found


def share_equal(given: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, ...]]) -> list[float]:
    """Per text the share of equal tokens, 0..1; 1 where there are none."""
    return [
        sum(a == b for a, b in zip(*pair, strict=True)) / len(pair[1]) if pair[1] else 1.0
        for pair in zip(given, wanted, strict=True)
    ]
