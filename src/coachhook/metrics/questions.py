"""What a request is evaluated with: its prompt, its paraphrases, its probes of locality and of portability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coachhook.edit_request import LOCALITY_KINDS, PORTABILITY, EditRequest

LOCALITY = LOCALITY_KINDS
KINDS = ("edit", "paraphrase", *LOCALITY, PORTABILITY)


@dataclass(frozen=True)
class Question:
    """One prompt and the answer it is scored against.

    Attributes:
        request: position of its request in the stream.
        kind: "edit", "paraphrase", "other_subject", "same_subject" or "portability".
        index: which of the request's prompts of that kind.
        rivals: the request's two answers, the one that is to be more probable behind this prompt first: new and true
            for edits and paraphrases, true and new for other subjects; None for other kinds and without a true answer.
    """

    request: int
    kind: str
    index: int
    prompt: str
    answer: str
    rivals: tuple[str, str] | None = None


def questions(requests: Sequence[EditRequest]) -> list[Question]:
    """Every prompt of every request, request by request."""
    asked = []
    for position, request in enumerate(requests):
        new, true = request.target_new, request.target_true
        towards, away = ((new, true), (true, new)) if true is not None else (None, None)
        asked.append(Question(position, "edit", 0, request.text, new, towards))
        for index, text in enumerate(request.paraphrase_texts):
            asked.append(Question(position, "paraphrase", index, text, new, towards))
        counts = dict.fromkeys((*LOCALITY, PORTABILITY), 0)
        for probe in (*request.locality, *request.portability):
            rivals = away if probe.kind == "other_subject" else None
            asked.append(Question(position, probe.kind, counts[probe.kind], probe.prompt, probe.answer, rivals))
            counts[probe.kind] += 1
    return asked
