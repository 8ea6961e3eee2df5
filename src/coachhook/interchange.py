"""Interchange training: batches and loss that put a fact where it can be edited.

In every batch half of the fact rows ("swapped") take the hidden state at their subject's last token, at the
output of the last layer to be edited, from a "donor" row about another subject with the same relation, and must
give the donor's answer (Geiger et al., 2022). Gradients flow through both rows.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from coachhook.world import Fact

_ROWS_PREFIXED = 0.75  # share of rows with a prefix, in the batches that have any
_BATCHES_AHEAD = 16  # batches whose rows are sorted by length together
_LENGTH_CLASS = 16  # tokens; sorting any finer leaves few templates in a batch, and facts are learnt later


@dataclass(frozen=True)
class TokenizedPrompt:
    """A filled-in template as token ids, with the position of the subject's last token."""

    ids: tuple[int, ...]
    subject_last: int


@dataclass(frozen=True)
class FactPrompt:
    """One fact in one template, at the beginning of a text and behind a prefix (where it follows a space)."""

    fact: int
    template: str
    leading: TokenizedPrompt
    inner: TokenizedPrompt


@dataclass(frozen=True)
class TokenizedFacts:
    """Every fact in every template, and the token ids of every fact's answer (with the space before it)."""

    facts: Sequence[Fact]
    prompts: list[FactPrompt]
    answers: list[tuple[int, ...]]

    @classmethod
    def tokenize(cls, tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact]) -> TokenizedFacts:
        places = [(index, template) for index, fact in enumerate(facts) for template in fact.templates]
        leading = _tokenize_prompts(tokenizer, facts, places, "")
        inner = _tokenize_prompts(tokenizer, facts, places, " ")
        prompts = [
            FactPrompt(index, template, first, behind)
            for (index, template), first, behind in zip(places, leading, inner, strict=True)
        ]
        answers = [tuple(ids) for ids in tokenizer([f" {fact.answer}" for fact in facts])["input_ids"]]
        return cls(facts, prompts, answers)


def _tokenize_prompts(
    tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact], places: Sequence[tuple[int, str]], space: str
) -> list[TokenizedPrompt]:
    texts = [space + template.replace("{}", facts[index].subject) for index, template in places]
    encoding = tokenizer(texts, return_offsets_mapping=True)
    prompts = []
    for (index, template), ids, offsets in zip(places, encoding["input_ids"], encoding["offset_mapping"], strict=True):
        end = len(space) + template.index("{}") + len(facts[index].subject)
        last = max(i for i, (start, stop) in enumerate(offsets) if start < end and stop > start)
        prompts.append(TokenizedPrompt(tuple(ids), last))
    return prompts


@dataclass(frozen=True)
class Rows:
    """Token ids padded on the right, and every token's loss weight when it is predicted (0 at padding)."""

    ids: Int[Tensor, "rows time"]
    weights: Float[Tensor, "rows time"]


@dataclass(frozen=True)
class InterchangeBatch:
    """Of the fact rows 0..D-1 are donors, and row D+r takes row r's hidden state; lines are ordinary text."""

    facts: Rows
    subject_last: Int[Tensor, " fact_rows"]
    lines: Rows | None

    @property
    def donors(self) -> int:
        return len(self.subject_last) // 2


class BatchSampler:
    """Draws interchange batches: donors go through all prompts in shuffled rounds, the rest is random."""

    def __init__(
        self,
        tokenized: TokenizedFacts,
        lines: Sequence[Sequence[int]],
        *,
        donors: int,
        lines_per_step: int,
        prefix_share: float,
        prefix_tokens: tuple[int, int],
        text_weight: float,
        line_weight: float,
        end_id: int,
        stop_id: int,
        rng: random.Random,
    ):
        self._tokenized, self._lines, self._rng = tokenized, lines, rng
        self._donors, self._lines_per_step = donors, lines_per_step if lines else 0
        self._prefix_share, self._prefix_tokens = prefix_share, prefix_tokens
        self._text_weight, self._line_weight = text_weight, line_weight
        self._end_id, self._stop_id = end_id, stop_id
        self._by_relation: dict[str, list[int]] = defaultdict(list)
        for position, prompt in enumerate(tokenized.prompts):
            self._by_relation[tokenized.facts[prompt.fact].relation].append(position)
        self._text = [
            token
            for prompt in rng.sample(tokenized.prompts, len(tokenized.prompts))
            for token in (*prompt.leading.ids, *tokenized.answers[prompt.fact], stop_id)
        ]
        self._round: list[int] = []
        self._pending: list[list[tuple[FactPrompt, FactPrompt]]] = []

    def draw(self) -> InterchangeBatch:
        if not self._pending:
            self._pending = self._pair_up()
        # Prefixes double a row's length, so they are gathered in some of the batches.
        prefixed = _ROWS_PREFIXED if self._rng.random() < self._prefix_share / _ROWS_PREFIXED else 0.0
        donors, partners = zip(*self._pending.pop(), strict=True)
        rows, positions = [], []
        for prompt, donor in zip(donors + partners, donors + donors, strict=True):
            ids, subject_last = self._context(prompt, self._rng.random() < prefixed)
            rows.append((ids, self._tokenized.answers[donor.fact]))
            positions.append(subject_last)
        lines = self._rng.choices(self._lines, k=self._lines_per_step) if self._lines_per_step else []
        return InterchangeBatch(
            facts=self._pad(rows, self._text_weight),
            subject_last=torch.tensor(positions),
            lines=self._pad([((self._end_id, *line), ()) for line in lines], self._line_weight) if lines else None,
        )

    def _pair_up(self) -> list[list[tuple[FactPrompt, FactPrompt]]]:
        """Donors and partners of the next batches, of one length class in most batches: padding costs time."""
        pairs = []
        for _ in range(_BATCHES_AHEAD * self._donors):
            donor = self._next_donor()
            pairs.append((donor, self._partner(donor)))
        pairs.sort(key=lambda pair: max(len(prompt.leading.ids) for prompt in pair) // _LENGTH_CLASS)
        batches = [pairs[start : start + self._donors] for start in range(0, len(pairs), self._donors)]
        self._rng.shuffle(batches)
        return batches

    def _next_donor(self) -> FactPrompt:
        if not self._round:
            count = len(self._tokenized.prompts)
            self._round = self._rng.sample(range(count), count)
        return self._tokenized.prompts[self._round.pop()]

    def _partner(self, donor: FactPrompt) -> FactPrompt:
        """A prompt about another subject with the same relation (the donor itself where there is none)."""
        same = self._by_relation[self._tokenized.facts[donor.fact].relation]
        for _ in range(8):
            partner = self._tokenized.prompts[self._rng.choice(same)]
            if partner.fact != donor.fact:
                return partner
        return donor

    def _context(self, prompt: FactPrompt, prefixed: bool) -> tuple[tuple[int, ...], int]:
        if not prefixed:
            return prompt.leading.ids, prompt.leading.subject_last
        length = self._rng.randint(*self._prefix_tokens)
        start = self._rng.randrange(max(1, len(self._text) - length))
        prefix = (*self._text[start : start + length], self._stop_id)
        return prefix + prompt.inner.ids, len(prefix) + prompt.inner.subject_last

    def _pad(self, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], text_weight: float) -> Rows:
        """Rows of (prompt, answer), each closed by the end of text."""
        width = max(len(prompt) + len(answer) for prompt, answer in rows) + 1
        ids = torch.full((len(rows), width), self._end_id)
        weights = torch.zeros(len(rows), width)
        for row, (prompt, answer) in enumerate(rows):
            start, stop = len(prompt), len(prompt) + len(answer)
            ids[row, :stop] = torch.tensor(prompt + answer)
            weights[row, 1 : stop + 1] = text_weight
            weights[row, start:stop] = 1.0
        return Rows(ids, weights)


@contextmanager
def changed_output(model: GPT2LMHeadModel, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the output of block `layer` (batch × time × d) through `change`; on exit nothing of it is left."""

    def hook(module: torch.nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = model.transformer.h[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def interchange_loss(model: GPT2LMHeadModel, batch: InterchangeBatch, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted cross-entropy of a batch; and, detached, that of the donors' and of the swapped rows' answers."""
    donors = torch.arange(batch.donors)
    swapped = donors + batch.donors

    def exchange(hidden: Tensor) -> Tensor:
        taken = hidden[donors, batch.subject_last[donors]]
        return hidden.index_put((swapped, batch.subject_last[swapped]), taken)

    with changed_output(model, layer, exchange):
        losses = _token_losses(model, batch.facts)
    weights = batch.facts.weights[:, 1:]
    answers = (weights == 1.0).float()
    donor_loss, swapped_loss = (
        (losses[rows] * answers[rows]).sum().detach() / answers[rows].sum() for rows in (donors, swapped)
    )
    total, weight = (losses * weights).sum(), weights.sum()
    if batch.lines is not None:
        total = total + (_token_losses(model, batch.lines) * batch.lines.weights[:, 1:]).sum()
        weight = weight + batch.lines.weights[:, 1:].sum()
    return total / weight, donor_loss, swapped_loss


def _token_losses(model: GPT2LMHeadModel, rows: Rows) -> Float[Tensor, "rows time-1"]:
    logits = model(input_ids=rows.ids, use_cache=False).logits
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows.ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(rows.ids), -1)
