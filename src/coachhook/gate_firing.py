"""How often each hook layer answers with its edited weights on a sample of text, as its gate really decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from coachhook.architectures import ModelParts
from coachhook.editor import Editor
from coachhook.errors import CoachHookError
from coachhook.metrics.reading import BATCH_TOKENS
from coachhook.progress import tell
from coachhook.tokens import batches_by_length, pad, pad_id


class SampleError(CoachHookError, ValueError):
    """There is no text to look at."""


@dataclass(frozen=True)
class GateFiring:
    """What one hook layer did on a sample.

    Attributes:
        texts, tokens: of the sample; padding is no token.
        fired_texts: texts with at least one token that the edited weights answered for.
        fired_tokens: such tokens.
    """

    layer: int
    texts: int
    tokens: int
    fired_texts: int
    fired_tokens: int

    @property
    def rate(self) -> float:
        """Share of tokens, 0..1."""
        return self.fired_tokens / self.tokens


@torch.no_grad()
def gate_firing(editor: Editor, texts: Sequence[str]) -> list[GateFiring]:
    """Per hook layer, from the lowest: on how many tokens and texts it fires; [] for methods without hook layers.

    Of a text longer than the model's context the beginning is read. Without a gate a layer fires everywhere, before
    the first step nowhere.

    Raises:
        SampleError: there is no token in the texts.
    """
    parts = ModelParts(editor.model)
    rows = [editor.tokenizer(text)["input_ids"][: parts.context_length] for text in texts]
    rows = [row for row in rows if row]
    if not rows:
        raise SampleError("texts: there is no text in the sample; give at least one line")
    fired: dict[int, list[int]] = {}
    read = 0
    for group in batches_by_length([len(row) for row in rows], BATCH_TOKENS):
        batch = pad([rows[index] for index in group], pad_id(editor.tokenizer), parts.input_device)
        with editor.recorded_swaps() as swaps:
            parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        read += len(group)
        tell("reading texts", read, len(rows))
        for layer, (swap,) in swaps.items():
            fired.setdefault(layer, []).extend((swap & batch.real.to(swap.device)).sum(-1).tolist())
    tokens = sum(map(len, rows))
    return [
        GateFiring(layer, len(rows), tokens, sum(count > 0 for count in counts), sum(counts))
        for layer, counts in sorted(fired.items())
    ]
