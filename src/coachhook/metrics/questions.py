"""What a request is evaluated with: its prompt, its paraphrases, its locality probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coachhook.edit_request import EditRequest

LOCALITY = ("other_subject", "same_subject")
KINDS = ("edit", "paraphrase", *LOCALITY)


@dataclass(frozen=True)
class Question:
    """One prompt and the answer it is scored against.

    Attributes:
        request: position of its request in the stream.
        kind: "edit", "paraphrase", "other_subject" or "same_subject".
        index: which of the request's prompts of that kind.
    """

    request: int
    kind: str
    index: int
    prompt: str
    answer: str


def questions(requests: Sequence[EditRequest]) -> list[Question]:
    """Every prompt of every request, request by request."""
    asked = []
    for position, request in enumerate(requests):
        asked.append(Question(position, "edit", 0, request.text, request.target_new))
        for index, text in enumerate(request.paraphrase_texts):
            asked.append(Question(position, "paraphrase", index, text, request.target_new))
        counts = dict.fromkeys(LOCALITY, 0)
        for probe in request.locality:
            asked.append(Question(position, probe.kind, counts[probe.kind], probe.prompt, probe.answer))
            counts[probe.kind] += 1
    return asked
