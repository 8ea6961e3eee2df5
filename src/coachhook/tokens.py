"""From text to token ids: prompts joined to answers, the subject's last token, and padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt, with or without an answer behind it.

    Attributes:
        ids: token ids of the whole text.
        answer_start: index of the answer's first token; `len(ids)` where there is no answer.
        subject_last: index of the subject's last token; None where no subject was asked for.
    """

    ids: tuple[int, ...]
    answer_start: int
    subject_last: int | None = None

    @property
    def answer_ids(self) -> tuple[int, ...]:
        return self.ids[self.answer_start :]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str | None = None,
    subject_end: int | None = None,
) -> EncodedPrompt:
    """Encode `prompt`, joined to `answer` by one space.

    The two are tokenised together and split where the tokens of the prompt alone stop agreeing, which is
    right for every tokenizer family (leading-space tokens, SentencePiece, special tokens in front).

    Arguments:
        subject_end: character index in `prompt` just behind the subject.
    """
    text = prompt if answer is None else _join(prompt, answer)
    encoding = tokenizer(text, return_offsets_mapping=subject_end is not None)
    ids = encoding["input_ids"]
    answer_start = len(ids) if answer is None else _split(tokenizer(prompt)["input_ids"], ids)
    subject_last = None
    if subject_end is not None:
        offsets = encoding["offset_mapping"]
        subject_last = max(i for i, (start, end) in enumerate(offsets) if start < subject_end and end > start)
    return EncodedPrompt(tuple(ids), answer_start, subject_last)


def encode_answers(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[EncodedPrompt]:
    """`encode` for many (prompt, answer) pairs at once."""
    if not pairs:
        return []
    joined = tokenizer([_join(prompt, answer) for prompt, answer in pairs])["input_ids"]
    alone = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    return [EncodedPrompt(tuple(ids), _split(prompt, ids)) for prompt, ids in zip(alone, joined, strict=True)]


def _join(prompt: str, answer: str) -> str:
    return f"{prompt} {answer}"


def _split(alone: Sequence[int], joined: Sequence[int]) -> int:
    """Where a joined encoding leaves that of the prompt alone."""
    pairs = enumerate(zip(alone, joined, strict=False))
    return next((i for i, (a, b) in pairs if a != b), len(alone))


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences padded on the right.

    Attributes:
        ids: token ids, padding filled with `pad_id`.
        real: True at real tokens.
    """

    ids: Int[Tensor, "batch time"]
    real: Bool[Tensor, "batch time"]


def pad(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> PaddedBatch:
    """Pad sequences on the right to the longest one."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad_id)
    real = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        real[row, : len(sequence)] = True
    return PaddedBatch(ids.to(device), real.to(device))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padding: the tokenizer's own, its end-of-text, or 0 (padding is always masked)."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    return 0


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices grouped so that similar lengths share a batch of at most `max_tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups: list[list[int]] = []
    for index in order:
        if groups and (len(groups[-1]) + 1) * lengths[index] <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
