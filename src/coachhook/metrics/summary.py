"""From scores per question to the field's three numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from coachhook.metrics.questions import Question


@dataclass(frozen=True)
class Metrics:
    """Means over requests (0..1); None where the requests have no such prompt.

    Attributes:
        reliability: on edit prompts.
        generality: on paraphrases.
        locality: on probes about other subjects.
        locality_same_subject: on probes about other facts of the edited subjects.
    """

    reliability: float | None
    generality: float | None
    locality: float | None
    locality_same_subject: float | None

    @property
    def mean(self) -> float | None:
        """Mean of reliability, generality and locality, as far as there are any."""
        known = [value for value in (self.reliability, self.generality, self.locality) if value is not None]
        return fmean(known) if known else None


def summarise(asked: Sequence[Question], scores: Sequence[float]) -> Metrics:
    """Metrics of a set of scored questions: first the mean of a request's prompts, then over requests."""
    by_kind: dict[str, dict[int, list[float]]] = {}
    for question, value in zip(asked, scores, strict=True):
        by_kind.setdefault(question.kind, {}).setdefault(question.request, []).append(value)

    def mean(kind: str) -> float | None:
        requests = by_kind.get(kind)
        return fmean(fmean(values) for values in requests.values()) if requests else None

    return Metrics(mean("edit"), mean("paraphrase"), mean("other_subject"), mean("same_subject"))
