"""ROME's protocol (Meng et al., NeurIPS 2022, section 3.4): which of two answers is the more probable.

P(answer | prompt) is exp of the mean log-likelihood of the answer's tokens, so that long answers are not punished:
what the authors' code (kmeng01/memit, experiments/py/eval_utils_counterfact.py, summarize.py) compares and reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean

from transformers import PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.metrics.protocols import Answers, Columns, Protocol
from coachhook.metrics.questions import KINDS, Question
from coachhook.metrics.reading import log_likelihoods
from coachhook.metrics.summary import Metrics, mean_over_requests, summarise
from coachhook.tokens import EncodedPrompt


@dataclass(frozen=True)
class RomeMetrics(Metrics):
    """`Metrics` whose means are shares of successes; ROME calls them efficacy, paraphrase and neighbourhood.

    A success is P(new) > P(true) on edit prompts and paraphrases, P(true) > P(new) on prompts about other subjects;
    a magnitude is the mean of that difference, −1..1. Other kinds of prompts are not scored.

    Attributes:
        not_scored: requests without a true answer, whose prompts are not scored.
        base: the same of the base model; None in that.
    """

    efficacy_magnitude: float | None = None
    paraphrase_magnitude: float | None = None
    neighbourhood_magnitude: float | None = None
    not_scored: int = 0
    base: RomeMetrics | None = None

    @property
    def efficacy(self) -> float | None:
        return self.reliability

    @property
    def paraphrase(self) -> float | None:
        return self.generality

    @property
    def neighbourhood(self) -> float | None:
        return self.locality

    @property
    def score(self) -> float | None:
        """Harmonic mean of the three successes; None where one of them is unknown."""
        successes = (self.efficacy, self.paraphrase, self.neighbourhood)
        return None if None in successes else harmonic_mean(successes)

    def row(self) -> dict[str, float | None]:
        names = ("efficacy", "paraphrase", "neighbourhood", "score")
        magnitudes = ("efficacy_magnitude", "paraphrase_magnitude", "neighbourhood_magnitude")
        own = {name: getattr(self, name) for name in (*names, *magnitudes, "not_scored")}
        before = {f"base_{name}": getattr(self.base, name) for name in names} if self.base else {}
        return super().row() | own | before


class Rome(Protocol):
    """The mean log-likelihoods of a question's two rival answers, of the edited and of the base model."""

    columns = ("score", "magnitude", "base_score", "base_magnitude")
    base_kinds = KINDS

    def candidates(self, question: Question) -> tuple[str, ...]:
        return question.rivals or ()

    def read(self, parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int) -> list[tuple]:
        return log_likelihoods(parts, rows, fill)

    def score(
        self, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], answers: Answers, base: Answers
    ) -> Columns:
        numbers = [
            [number for pair in pairs for number in (_success(pair), _magnitude(pair))]
            for pairs in zip(answers, base, strict=True)
        ]
        return {name: [row[place] for row in numbers] for place, name in enumerate(self.columns)}

    def summarise(self, asked: Sequence[Question], columns: Mapping[str, Sequence[float | None]]) -> RomeMetrics:
        base = _metrics(asked, columns["base_score"], columns["base_magnitude"])
        return _metrics(asked, columns["score"], columns["magnitude"], base)


def _success(pair: tuple[float, float] | tuple[()]) -> float | None:
    return float(pair[0] > pair[1]) if pair else None


def _magnitude(pair: tuple[float, float] | tuple[()]) -> float | None:
    return math.exp(pair[0]) - math.exp(pair[1]) if pair else None


def _metrics(
    asked: Sequence[Question],
    scores: Sequence[float | None],
    magnitudes: Sequence[float | None],
    base: RomeMetrics | None = None,
) -> RomeMetrics:
    kinds = ("edit", "paraphrase", "other_subject")
    not_scored = sum(q.kind == "edit" and value is None for q, value in zip(asked, scores, strict=True))
    return RomeMetrics(
        **summarise(asked, scores).scores(),
        **{
            f"{name}_magnitude": mean_over_requests(asked, magnitudes, kind)
            for name, kind in zip(("efficacy", "paraphrase", "neighbourhood"), kinds, strict=True)
        },
        not_scored=not_scored,
        base=base,
    )
