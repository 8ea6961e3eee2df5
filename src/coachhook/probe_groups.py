"""Probes of EasyEdit and KnowEdit, which stand in named groups: what must stay, and what follows from an edit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from coachhook.edit_request import PORTABILITY, Probe, RequestError
from coachhook.json_fields import answers, as_list, as_object, required

_ABOUT = {  # by group, in lower case and without "_": whose facts it asks for
    "relationspecificity": "same_subject",
    "forgetfulness": "same_subject",
    "otherattribution": "same_subject",
    "neighborhood": "other_subject",
    "neighbors": "other_subject",
    "distracting": "other_subject",
    "distractingneighbor": "other_subject",
}


def locality_probes(groups: object, subject: object) -> tuple[list[Probe], int]:
    """The probes in locality groups, and how many were left out because no answer to them is given.

    groups: `{group: [{prompt, ground_truth}, ...]}`, or `{group: {prompt, ground_truth}}` with texts or lists. In a
    group of an unknown name a probe that names the subject is about it.
    """

    def kind(group: str, prompt: object) -> str:
        named = isinstance(prompt, str) and isinstance(subject, str) and subject.casefold() in prompt.casefold()
        return _ABOUT.get(re.sub(r"[\W_]", "", group).casefold(), "same_subject" if named else "other_subject")

    return _probes(groups, "locality", kind)


def portability_probes(groups: object) -> tuple[list[Probe], int]:
    """The probes in portability groups, as in `locality_probes`, or the one new question that EasyEdit's files ask."""
    if isinstance(groups, dict) and "New Question" in groups:
        entry = {"prompt": groups["New Question"], "ground_truth": required(groups, "New Answer", f"{PORTABILITY}.")}
        groups = {"New Question": entry}
    return _probes(groups, PORTABILITY, lambda group, prompt: PORTABILITY)


def _probes(groups: object, field: str, kind: Callable[[str, object], str]) -> tuple[list[Probe], int]:
    probes, unanswered = [], 0
    for group, entries in as_object(groups or {}, field).items():
        where = f"{field}.{group}"
        entries = [entries] if isinstance(entries, dict) else as_list(entries or [], where)
        for prompt, truth in (pair for entry in entries if entry != {} for pair in _pairs(entry, where)):
            if found := answers(truth, where):
                probes.append(Probe(prompt, found[0], kind(group, prompt)))
            else:
                unanswered += 1
    return probes, unanswered


def _pairs(entry: object, where: str) -> Iterator[tuple[object, object]]:
    """Each prompt of an entry, with its ground truth."""
    entry = as_object(entry, where)
    prompt, truth = required(entry, "prompt", f"{where}."), required(entry, "ground_truth", f"{where}.")
    if prompt is None:
        return
    if not isinstance(prompt, list):
        yield prompt, truth
    elif len(prompt) == 1:
        yield prompt[0], truth
    elif isinstance(truth, list) and len(truth) == len(prompt):
        yield from zip(prompt, truth, strict=True)
    else:
        raise RequestError(f"its {len(prompt)} prompts need one ground_truth each", where)
