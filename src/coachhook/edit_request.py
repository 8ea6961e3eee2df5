"""What an edit is: a prompt, filled in with its subject, is to be answered with a new target.

Text is never formatted, only "{}" is replaced: real records hold stray braces.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from coachhook.errors import CoachHookError

LOCALITY_KINDS = ("other_subject", "same_subject")
PORTABILITY = "portability"
PROBE_KINDS = (*LOCALITY_KINDS, PORTABILITY)


class RequestError(CoachHookError, ValueError):
    """A request that cannot be edited, in one line: file, record (from 1; its case_id), field, what to do."""

    def __init__(self, problem: str, field: str | None = None, case_id=None, record: int | None = None, file=None):
        place = f"record {record}" if record is not None else ""
        if case_id is not None:
            place = f"{place or 'request'} (case_id {case_id})"
        parts = [str(part) for part in (file, place, field) if part]
        super().__init__(" ".join(": ".join([*parts, problem]).split()))
        self.problem, self.field, self.case_id, self.record, self.file = problem, field, case_id, record, file


def quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def checked_text(value: object, field: str, advice: str, case_id=None) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{quoted(value)} is not text; {advice}", field, case_id)
    if not value.strip():
        raise RequestError(f"it is empty; {advice}", field, case_id)
    return value


def _find_word(word: str, text: str) -> int:
    """Where `word` first stands in `text` as a whole word, else as a part of one; -1 where it does not.

    No regular expression: compiling one per request would take most of the time of reading a large file.
    """
    start = first = text.find(word)
    while start >= 0:
        around = text[max(start - 1, 0) : start] + text[start + len(word) : start + len(word) + 1]
        if not any(character.isalnum() or character == "_" for character in around):
            return start
        start = text.find(word, start + 1)
    return first


@dataclass(frozen=True, slots=True)
class Probe:
    """A full prompt whose answer no edit may change; `kind` says whether it is about an edited subject.

    Of kind "portability" its answer is not to stay, but follows from the edit.

    Raises RequestError for text that is empty or no text, and for an unknown kind.
    """

    prompt: str
    answer: str
    kind: str = "other_subject"

    def __post_init__(self):
        field = PORTABILITY if self.kind == PORTABILITY else "locality"
        checked_text(self.prompt, f"{field} prompt", "give the probe's full text")
        answer = checked_text(self.answer, f"{field} answer", "give the answer that is right after the edit")
        object.__setattr__(self, "answer", answer.lstrip())
        if self.kind not in PROBE_KINDS:
            raise RequestError(f"{quoted(self.kind)} is unknown; use one of {PROBE_KINDS}", "locality kind")


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One edit. Raises RequestError at construction for what cannot be edited.

    prompt, paraphrases: a template with one "{}" where the subject goes, or text in which the subject stands
    (a paraphrase may lack it). target_new, target_true: the new and the old answer, without a leading space.
    locality: probes of what must stay. portability: probes of what follows from the edit. relation: the property
    edited, where known. superseded: a later request contradicts it.
    """

    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    case_id: int | str | None = None
    relation: str | None = None
    superseded: bool = False

    def __post_init__(self):
        self._check_labels()
        checked_text(self.subject, "subject", "give the name the fact is about", self.case_id)
        self._check_template(self.prompt, "prompt")
        for field in ("paraphrases", "locality", "portability"):
            if isinstance(getattr(self, field), str) or not isinstance(getattr(self, field), Sequence):
                raise RequestError(f"{quoted(getattr(self, field))} is not a list", field, self.case_id)
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for paraphrase in self.paraphrases:
            self._check_template(paraphrase, "paraphrases")
        self.subject_span(self.text)
        for field, kinds in (("locality", LOCALITY_KINDS), ("portability", (PORTABILITY,))):
            for probe in getattr(self, field):
                if not isinstance(probe, Probe):
                    raise RequestError(f"{quoted(probe)} is not a Probe", field, self.case_id)
                if probe.kind not in kinds:
                    raise RequestError(f"its kind is {probe.kind!r}; use one of {kinds}", field, self.case_id)
        self._check_targets()

    def _check_labels(self):
        if isinstance(self.case_id, bool) or not isinstance(self.case_id, int | str | None):
            raise RequestError(f"{quoted(self.case_id)} is neither a number nor text", "case_id")
        if not isinstance(self.relation, str | None):
            raise RequestError(f"{quoted(self.relation)} is not text; leave it out", "relation", self.case_id)
        if not isinstance(self.superseded, bool):
            raise RequestError(f"{quoted(self.superseded)} is neither true nor false", "superseded", self.case_id)

    def _check_template(self, template: str, field: str):
        checked_text(template, field, 'write it as text, with "{}" for the subject', self.case_id)
        if template.count("{}") > 1:
            problem = f'{quoted(template)} has more than one "{{}}"; leave one, for the subject'
            raise RequestError(problem, field, self.case_id)

    def _check_targets(self):
        target = checked_text(self.target_new, "target_new", "give the new answer", self.case_id).lstrip()
        object.__setattr__(self, "target_new", target)
        if self.target_true is None:
            return
        true = checked_text(self.target_true, "target_true", "give the old answer or leave it out", self.case_id)
        object.__setattr__(self, "target_true", true.lstrip())
        if target.strip() == true.strip():
            problem = f"{quoted(target)} is already the true answer; drop the record or change the target"
            raise RequestError(problem, "target_new", self.case_id)

    @property
    def text(self) -> str:
        """The prompt, with the subject filled in."""
        return self.prompt.replace("{}", self.subject)

    @property
    def paraphrase_texts(self) -> tuple[str, ...]:
        """The paraphrases, with the subject filled in."""
        return tuple(paraphrase.replace("{}", self.subject) for paraphrase in self.paraphrases)

    def subject_span(self, text: str) -> tuple[int, int]:
        """Where the subject stands in `text`, as (start, end) in characters.

        In a filled-in template, where its "{}" was; else the first exact occurrence, else the first one that
        differs in case only. A whole word comes before a part of one. RequestError where there is none.
        """
        for template in (self.prompt, *self.paraphrases):
            if "{}" in template and template.replace("{}", self.subject) == text:
                start = template.index("{}")
                return start, start + len(self.subject)
        if (start := _find_word(self.subject, text)) >= 0:
            return start, start + len(self.subject)
        subject = re.escape(self.subject)
        for pattern in (rf"(?<!\w){subject}(?!\w)", subject):
            if found := re.search(pattern, text, re.IGNORECASE):
                return found.span()
        problem = f'the subject {quoted(self.subject)} does not stand in {quoted(text)}; write it there, or "{{}}"'
        raise RequestError(problem, "prompt", self.case_id)


def fact_keys(request: EditRequest) -> tuple[tuple[str, str, str], ...]:
    """What names the fact that a request edits; two requests that share one of these edit the same fact.

    The subject, with the filled-in prompt, a paraphrase, or the relation. Where no relation is known, the old answer
    stands for it: ZsRE asks for one fact in several wordings.
    """
    keys = [("prompt", request.subject, text) for text in (request.text, *request.paraphrase_texts)]
    if request.relation is not None:
        keys.append(("relation", request.subject, request.relation))
    elif request.target_true is not None:
        keys.append(("true answer", request.subject, request.target_true.strip()))
    return tuple(keys)


def mark_superseded(requests: Iterable[EditRequest]) -> list[EditRequest]:
    """The same requests in order, `superseded` exactly where a later one gives the same fact a different target.

    Marks from elsewhere go: in a part of a stream other requests are superseded. The same fact: `fact_keys`.
    """
    later_targets: dict[tuple[str, str, str], set[str]] = {}
    marked = []
    for request in reversed(list(requests)):
        target = request.target_new.strip()
        contradicted = any(later_targets.get(fact, set()) - {target} for fact in fact_keys(request))
        marked.append(request if request.superseded == contradicted else replace(request, superseded=contradicted))
        for fact in fact_keys(request):
            later_targets.setdefault(fact, set()).add(target)
    return marked[::-1]
