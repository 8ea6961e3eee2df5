"""How questions are asked of a model and scored, per protocol.

A protocol reads one or more candidate answers behind each prompt, of the edited model and, where it compares the two,
of the base model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.metrics.questions import LOCALITY, Question
from coachhook.metrics.reading import generated, teacher_forced
from coachhook.metrics.summary import Metrics, summarise
from coachhook.tokens import EncodedPrompt, encode_answers

Answers = list[tuple]  # what was read, question by question; () where nothing was
Columns = dict[str, list[float | None]]  # numbers by name, question by question


class Protocol(ABC):
    """One way to evaluate; scores of different protocols are not comparable.

    Attributes:
        columns: names of the numbers that each question gets; the first is "score".
        base_kinds: kinds of the questions that the base model is asked too.
    """

    columns: ClassVar[tuple[str, ...]] = ("score",)
    base_kinds: ClassVar[tuple[str, ...]]

    @abstractmethod
    def candidates(self, question: Question) -> tuple[str, ...]:
        """The answers that are read behind the question's prompt; none where the protocol cannot score it."""

    @abstractmethod
    def read(self, parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int) -> list[tuple]:
        """What the model says of each prompt with a candidate behind it; `fill` fills padding."""

    @abstractmethod
    def score(
        self, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], answers: Answers, base: Answers
    ) -> Columns:
        """`columns` of each question; the score is 0..1, None where the protocol cannot score it."""

    def summarise(self, asked: Sequence[Question], columns: Mapping[str, Sequence[float | None]]) -> Metrics:
        """Metrics of questions and their `columns`."""
        return summarise(asked, columns["score"])


class TokenProtocol(Protocol):
    """Predicted tokens, as many as the answer has: held against the answer, or on locality probes the base model's.

    Arguments:
        read: predicts the tokens.
        compare: predicted and wanted tokens to a score.
    """

    base_kinds = LOCALITY

    def __init__(self, read: Callable[..., list[tuple]], compare: Callable[[tuple, tuple], float]):
        self._read, self._compare = read, compare

    def candidates(self, question: Question) -> tuple[str, ...]:
        return (question.answer,)

    def read(self, parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int) -> list[tuple]:
        return self._read(parts, rows, fill)

    def score(
        self, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], answers: Answers, base: Answers
    ) -> Columns:
        rows = encode_answers(tokenizer, [(question.prompt, question.answer) for question in asked])
        scores = [
            self._compare(given, before if question.kind in LOCALITY else row.answer_ids)
            for question, row, given, before in zip(asked, rows, answers, base, strict=True)
        ]
        return {"score": scores}


def _token_accuracy(given: tuple[int, ...], wanted: tuple[int, ...]) -> float:
    return sum(a == b for a, b in zip(given, wanted, strict=True)) / len(wanted)


def _exact_match(given: tuple[int, ...], wanted: tuple[int, ...]) -> float:
    return float(given == wanted)


EASYEDIT = TokenProtocol(teacher_forced, _token_accuracy)
GENERATE = TokenProtocol(generated, _exact_match)
