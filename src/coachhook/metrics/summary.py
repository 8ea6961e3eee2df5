"""From scores per question to the field's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from coachhook.metrics.questions import KINDS, Question


@dataclass(frozen=True)
class Metrics:
    """Means over requests (0..1); None where the requests have no such prompt, or none that could be scored.

    Attributes:
        reliability: on edit prompts.
        generality: on paraphrases.
        locality: on probes about other subjects.
        locality_same_subject: on probes about other facts of the edited subjects.
        portability: on probes of what follows from the edit.
    """

    reliability: float | None
    generality: float | None
    locality: float | None
    locality_same_subject: float | None
    portability: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean of reliability, generality and locality, as far as there are any."""
        known = [value for value in (self.reliability, self.generality, self.locality) if value is not None]
        return fmean(known) if known else None

    def scores(self) -> dict[str, float | None]:
        """The means that every protocol has, by name; portability only where there is any."""
        scores = {
            "reliability": self.reliability,
            "generality": self.generality,
            "locality": self.locality,
            "locality_same_subject": self.locality_same_subject,
        }
        return scores if self.portability is None else scores | {"portability": self.portability}

    def row(self) -> dict[str, float | None]:
        """All numbers by name, as a stream writes them down."""
        return self.scores() | {"mean": self.mean}


def mean_over_requests(asked: Sequence[Question], values: Sequence[float | None], kind: str) -> float | None:
    """First the mean of a request's prompts of one kind, then over requests; None values are left out."""
    of_requests: dict[int, list[float]] = {}
    for question, value in zip(asked, values, strict=True):
        if question.kind == kind and value is not None:
            of_requests.setdefault(question.request, []).append(value)
    return fmean(map(fmean, of_requests.values())) if of_requests else None


def summarise(asked: Sequence[Question], scores: Sequence[float | None]) -> Metrics:
    """Metrics of a set of scored questions: first the mean of a request's prompts, then over requests."""
    return Metrics(*(mean_over_requests(asked, scores, kind) for kind in KINDS))
