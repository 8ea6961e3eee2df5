"""Reading answers off a model: many prompts in one padded pass, the head only at the tokens that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from coachhook.architectures import ModelParts
from coachhook.progress import tell
from coachhook.tokens import EncodedPrompt, batches_by_length, pad

BATCH_TOKENS = 8192


def teacher_forced(parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int) -> list[tuple[int, ...]]:
    """The most probable token at the place of each token of the answer, which stands in the sequence.

    Arguments:
        fill: the id that fills padding.
    """
    found: list[tuple[int, ...]] = [()] * len(rows)
    for group, logits in _answer_logits(parts, rows, fill):
        tokens = logits.argmax(-1).tolist()
        for index in group:
            size = len(rows[index].answer_ids)
            found[index], tokens = tuple(tokens[:size]), tokens[size:]
    return found


def log_likelihoods(parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int) -> list[tuple[float]]:
    """The mean over the answer's tokens of log P(token | what stands before it), in nats; at least in float32."""
    found: list[tuple[float]] = [(0.0,)] * len(rows)
    for group, logits in _answer_logits(parts, rows, fill):
        answers = [rows[index].answer_ids for index in group]
        wanted = torch.tensor([token for answer in answers for token in answer], device=logits.device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        of_tokens = -torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        for index, of_answer in zip(group, of_tokens.split([len(answer) for answer in answers]), strict=True):
            found[index] = (of_answer.mean().item(),)
    return found


def generated(parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int) -> list[tuple[int, ...]]:
    """Greedily, without a cache, as many tokens behind the prompt as the answer has."""
    found: list[tuple[int, ...]] = [()] * len(rows)
    for length in range(max((len(row.answer_ids) for row in rows), default=0)):
        going = [index for index, row in enumerate(rows) if len(row.answer_ids) > length]
        texts = [rows[index].ids[: rows[index].answer_start] + found[index] for index in going]
        for group, logits in next_logits(parts, texts, fill):
            for place, token in zip(group, logits.argmax(-1).tolist(), strict=True):
                found[going[place]] += (token,)
    return found


def next_logits(
    parts: ModelParts, texts: Sequence[Sequence[int]], fill: int
) -> Iterator[tuple[list[int], Float[Tensor, "group vocabulary"]]]:
    """Of groups of texts (their indices), the logits of the token that follows each."""
    for group in _told(batches_by_length([len(ids) for ids in texts], BATCH_TOKENS), len(texts)):
        chosen = [texts[index] for index in group]
        yield group, _logits(parts, chosen, [(row, len(ids) - 1) for row, ids in enumerate(chosen)], fill)


def _answer_logits(
    parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int
) -> Iterator[tuple[list[int], Float[Tensor, "tokens vocabulary"]]]:
    """Of groups of rows (their indices), the logits before each token of each answer, row after row."""
    for group in _told(batches_by_length([len(row.ids) for row in rows], BATCH_TOKENS), len(rows)):
        places = [
            (place, time - 1)
            for place, index in enumerate(group)
            for time in range(rows[index].answer_start, len(rows[index].ids))
        ]
        yield group, _logits(parts, [rows[index].ids for index in group], places, fill)


def _told(groups: Sequence[list[int]], total: int) -> Iterator[list[int]]:
    """The same groups; what was done with one is told before the next."""
    done = 0
    for group in groups:
        yield group
        done += len(group)
        tell("asking", done, total)


def _logits(
    parts: ModelParts, ids: Sequence[Sequence[int]], places: Sequence[tuple[int, int]], fill: int
) -> Float[Tensor, "places vocabulary"]:
    batch = pad(ids, fill, parts.input_device)
    hidden = parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False).last_hidden_state
    row, time = torch.tensor(places, device=hidden.device).T
    return parts.head(hidden[row, time])
