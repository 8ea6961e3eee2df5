"""What batches would do, before they are kept: edited in memory, evaluated with all earlier ones, and taken back.

Retention and locality are read with the very questions of the journal's requests, so nothing but the edits is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from coachhook.edit_request import EditRequest, fact_keys, mark_superseded
from coachhook.editor import Editor
from coachhook.metrics import (
    PROTOCOLS,
    Columns,
    Metrics,
    Question,
    check_protocol,
    predict,
    predict_base,
    questions,
    score,
)
from coachhook.metrics.questions import LOCALITY
from coachhook.text_agreement import argmax_tokens, share_equal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contradiction:
    """A request that gives a fact another target than an earlier request, of an earlier batch or its own."""

    step: int
    request: EditRequest
    earlier_step: int
    earlier: EditRequest

    def __str__(self) -> str:
        told = f"step {self.step} says {self.request.target_new!r} where step {self.earlier_step} said"
        return f"{self.request.text!r}: {told} {self.earlier.target_new!r}"


@dataclass(frozen=True)
class BatchChange:
    """One batch before and after, without the reliability, generality and portability of superseded requests.

    Attributes:
        step: number of the batch.
        new: whether it is one that was tried.
        requests, superseded: how many it has, and how many of them a later request contradicts.
    """

    step: int
    new: bool
    requests: int
    superseded: int
    before: Metrics
    after: Metrics

    def changes(self) -> Iterator[tuple[str, float, float]]:
        """(metric, before, after) of each metric that the batch has prompts for."""
        after = self.after.scores()
        for name, before in self.before.scores().items():
            if before is not None and after[name] is not None:
                yield name, before, after[name]


@dataclass(frozen=True)
class PromptChange:
    """One prompt's score (0..1) before and after.

    Attributes:
        step: number of the batch that the prompt belongs to.
        kind: as in `Question`.
        answer: what is wanted there.
    """

    step: int
    kind: str
    prompt: str
    answer: str
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class TextChange:
    """Share (0..1) of a text's tokens behind which the base model's most probable token is still the most probable."""

    text: str
    before: float
    after: float


@dataclass(frozen=True)
class Drop:
    """A number of the whole that falls: `metric` of the batch `step`, or of the texts, where `step` is None."""

    step: int | None
    metric: str
    before: float
    after: float


@dataclass(frozen=True)
class WhatIf:
    """What was found.

    Attributes:
        step: batches applied before; tried batches have the numbers that follow.
        batches: earlier ones first.
        prompts: every scored prompt, batch by batch.
    """

    step: int
    protocol: str
    batches: tuple[BatchChange, ...]
    prompts: tuple[PromptChange, ...]
    texts: tuple[TextChange, ...]
    contradictions: tuple[Contradiction, ...]

    def worst(self, count: int) -> list[PromptChange]:
        """Prompts that lose most; what several requests of a batch ask alike is named once."""
        losing = {(one.step, one.kind, one.prompt, one.answer): one for one in self.prompts if one.change < 0}
        return sorted(losing.values(), key=lambda one: one.change)[:count]

    def text_agreement(self) -> tuple[float, float] | None:
        """Mean over texts, before and after; None without texts."""
        if not self.texts:
            return None
        return fmean(text.before for text in self.texts), fmean(text.after for text in self.texts)

    def drops(self, more_than: float = 0.0) -> list[Drop]:
        """Metrics of batches, and the texts' agreement, that fall by more than `more_than`, batch by batch."""
        found = [Drop(batch.step, *change) for batch in self.batches for change in batch.changes()]
        if (agreement := self.text_agreement()) is not None:
            found.append(Drop(None, "agreement", *agreement))
        return [drop for drop in found if drop.before - drop.after > more_than + 1e-9]  # of rounding


def what_if(
    editor: Editor, batches: Sequence[Sequence[EditRequest]], *, texts: Sequence[str] = (), protocol: str = "easyedit"
) -> WhatIf:
    """Edit `batches`, one step each, evaluate every batch so far before and after, and roll back.

    The editor ends as it began, with the same bits, also where something fails.

    Arguments:
        texts: ordinary text that no edit may change; the beginning of each is read.

    Raises:
        RequestError, CovarianceError: as `Editor.edit`, and for an unknown protocol.
    """
    check_protocol(protocol)
    for batch in batches:
        editor.check(batch)
    earlier = [step.requests for step in editor.journal]
    probes = _Probes(editor, [*earlier, *batches], len(earlier), texts, protocol)
    start, before = editor.step, probes.read()
    try:
        for number, batch in enumerate(batches, 1):
            editor.edit(batch)
            logger.info("what if: step %d of %d edited in memory", number, len(batches))
        after = probes.read()
    finally:
        if editor.step > start:
            editor.rollback(start)
    return probes.compare(before, after, contradictions(batches, earlier))


def contradictions(
    batches: Sequence[Sequence[EditRequest]], earlier: Sequence[Sequence[EditRequest]] = ()
) -> tuple[Contradiction, ...]:
    """Requests of `batches` that contradict what stands: a later target of `earlier` or of `batches` (`fact_keys`)."""
    standing: dict[tuple[str, str, str], tuple[int, EditRequest]] = {}
    found = []
    for step, batch in enumerate((*earlier, *batches), 1):
        for request in batch:
            others = (standing[key] for key in fact_keys(request) if key in standing)
            target = request.target_new.strip()
            other = next((other for other in others if other[1].target_new.strip() != target), None)
            if other is not None and step > len(earlier):
                found.append(Contradiction(step, request, *other))
            standing |= dict.fromkeys(fact_keys(request), (step, request))
    return tuple(found)


class _Probes:
    """All questions and texts of a what-if, and the base model's answers to them.

    Arguments:
        batches: the first `kept` are applied already.
    """

    def __init__(
        self,
        editor: Editor,
        batches: Sequence[Sequence[EditRequest]],
        kept: int,
        texts: Sequence[str],
        protocol: str,
    ):
        self._editor, self._batches, self._kept = editor, batches, kept
        self._texts, self._protocol = [text for text in texts if text.strip()], protocol
        marked = iter(mark_superseded(request for batch in batches for request in batch))
        steps = [(step, next(marked)) for step, batch in enumerate(batches, 1) for _ in batch]
        # The tried ones come first: an error then names the record of their file.
        steps.sort(key=lambda pair: pair[0] <= kept)
        self._step, self._requests = [step for step, _ in steps], [request for _, request in steps]
        self._asked = [
            question
            for question in questions(self._requests)
            if question.kind in LOCALITY or not self._requests[question.request].superseded
        ]
        with editor.disabled():
            self._base = predict_base(editor.model, editor.tokenizer, self._asked, protocol)
            self._base_tokens = argmax_tokens(editor.model, editor.tokenizer, self._texts)

    def read(self) -> tuple[Columns, list[float]]:
        """The numbers of every question, and the agreement of every text, as the model stands now."""
        logger.info("what if: asking %d prompts at step %d", len(self._asked), self._editor.step)
        model, tokenizer = self._editor.model, self._editor.tokenizer
        answers = predict(model, tokenizer, self._asked, self._protocol)
        columns = score(tokenizer, self._asked, answers, self._base, self._protocol)
        return columns, share_equal(argmax_tokens(model, tokenizer, self._texts), self._base_tokens)

    def compare(
        self,
        before: tuple[Columns, list[float]],
        after: tuple[Columns, list[float]],
        found: tuple[Contradiction, ...],
    ) -> WhatIf:
        scores = zip(self._asked, before[0]["score"], after[0]["score"], strict=True)
        prompts = [
            PromptChange(self._step[asked.request], asked.kind, asked.prompt, asked.answer, old, new)
            for asked, old, new in scores
            if old is not None and new is not None
        ]
        return WhatIf(
            self._kept,
            self._protocol,
            tuple(self._batch(step, before[0], after[0]) for step in range(1, len(self._batches) + 1)),
            tuple(sorted(prompts, key=lambda prompt: prompt.step)),
            tuple(map(TextChange, self._texts, before[1], after[1])),
            found,
        )

    def _batch(self, step: int, before: Columns, after: Columns) -> BatchChange:
        places = [place for place, asked in enumerate(self._asked) if self._step[asked.request] == step]
        requests = [request for request, of in zip(self._requests, self._step, strict=True) if of == step]
        superseded = sum(request.superseded for request in requests)
        metrics = (self._metrics(places, columns) for columns in (before, after))
        return BatchChange(step, step > self._kept, len(requests), superseded, *metrics)

    def _metrics(self, places: Sequence[int], columns: Columns) -> Metrics:
        asked: list[Question] = [self._asked[place] for place in places]
        chosen = {name: [values[place] for place in places] for name, values in columns.items()}
        return PROTOCOLS[self._protocol].summarise(asked, chosen)
