"""Answers in a padded batch: where their tokens are predicted, and how probable they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.devices import at
from coachhook.tokens import PaddedBatch, encode_answers, pad, pad_id


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts joined to their answers.

    Attributes:
        rows: the padded batch.
        starts: where each row's answer starts.
        row, time, token: per answer token its row, the position that predicts it (one before its own), its id.
    """

    rows: PaddedBatch
    starts: tuple[int, ...]
    row: Int[Tensor, " answers"]
    time: Int[Tensor, " answers"]
    token: Int[Tensor, " answers"]

    @classmethod
    def encode(
        cls, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], device: torch.device
    ) -> AnswerBatch:
        """One row for each (prompt, answer)."""
        rows = encode_answers(tokenizer, pairs)
        places = [(i, t - 1, row.ids[t]) for i, row in enumerate(rows) for t in range(row.answer_start, len(row.ids))]
        batch = pad([row.ids for row in rows], pad_id(tokenizer), device)
        return cls(batch, tuple(row.answer_start for row in rows), *torch.tensor(places, device=device).T)

    def log_probabilities(self, parts: ModelParts) -> Float[Tensor, "answers vocabulary"]:
        """The model's log-probabilities, float32, before each answer token, where this batch lies."""
        hidden = parts.backbone(
            input_ids=self.rows.ids, attention_mask=self.rows.real.long(), use_cache=False
        ).last_hidden_state
        return parts.head(at(hidden, self.row, self.time)).float().log_softmax(-1).to(self.row.device)

    def row_means(self, values: Float[Tensor, " answers"]) -> Float[Tensor, " batch"]:
        """Mean over each row's answer tokens."""
        zeros = torch.zeros(len(self.starts), device=values.device)
        count = zeros.index_add(0, self.row, torch.ones_like(values))
        return zeros.index_add(0, self.row, values) / count

    def losses(self, log_probabilities: Float[Tensor, "answers vocabulary"]) -> Float[Tensor, " batch"]:
        """Negative log-likelihood of each row's answer, mean over its tokens, in nats."""
        return self.row_means(-log_probabilities.gather(1, self.token[:, None])[:, 0])
