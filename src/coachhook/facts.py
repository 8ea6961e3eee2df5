"""Facts of real request files: what an offline base model must know before they are edited.

What a request says of its subject (prompt, paraphrases, true answer) and of others (locality probes) are facts.
The templates of a relation are its requests' prompts with the subject taken out; they also find the subjects of
probes.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from coachhook.relations import label_relations, template_of
from coachhook.requests import EditRequest, Probe
from coachhook.world import Fact


@dataclass(frozen=True)
class RequestFacts:
    """What a base model for a request file is trained on, and the stream it can serve."""

    facts: list[Fact]
    lines: list[str]
    requests: list[EditRequest]
    """The reachable requests, with only those paraphrases and probes that are among the facts."""
    reachable_share: float
    """Of the requests whose own fact is memorised, the share that is reachable."""


def facts_from_requests(
    requests: Sequence[EditRequest],
    further: Iterable[EditRequest] = (),
    *,
    seed: int,
    templates_per_subject: int = 5,
    templates_per_other: int = 2,
    paraphrases: int = 2,
    probes: int = 3,
    unrelated_probes: int = 0,
) -> RequestFacts:
    """Derive facts from `requests`, which name their relation (as ROME's CounterFact does), and `further` ones.

    A request's fact is told in its own prompt, in further templates of its relation (`templates_per_subject` in
    all), and in its first `paraphrases` paraphrases just as they stand, odd prefixes included. Facts of its first
    `probes` usable locality probes, and of `further` requests whose prompt is a template of some relation, are told
    in `templates_per_other` templates: they make more targets reachable. Of contradicting records the first counts.
    The first `unrelated_probes` probes that no template fits are kept too, and told as further lines; probes of
    portability are not, as nothing but facts is learnt.
    Raises ValueError where no request has both a relation and a true answer.
    """
    usable = [r for r in requests if r.relation is not None and r.target_true is not None]
    if not usable:
        raise ValueError("no request has both relation and target_true: no facts can be derived from these records")
    book = _FactBook(usable)
    told = [r for r in usable if book.tell(r.subject, r.relation, template_of(r, r.text), r.target_true)]
    told = [replace(r, paraphrases=book.tell_paraphrases(r, paraphrases)) for r in told]
    edited = set(book.known())
    unrelated = [book.unrelated_probes(r)[:unrelated_probes] for r in told]
    told = [
        replace(r, locality=(*book.tell_probes(r, probes, edited), *kept), portability=())
        for r, kept in zip(told, unrelated, strict=True)
    ]
    for request in further:
        if request.target_true is not None:
            book.tell_further(request)
    rng = random.Random(seed)
    for key in book.known():
        book.widen(key, templates_per_subject if key in edited else templates_per_other, rng)
    facts = book.facts()
    stream = reachable(told, facts)
    lines = [f"{fact.subject} {fact.answer}." for fact in facts]
    lines += dict.fromkeys(f"{probe.prompt} {probe.answer}." for kept in unrelated for probe in kept)
    return RequestFacts(facts, lines, stream, len(stream) / len(told) if told else 0.0)


def facts_from_questions(
    requests: Sequence[EditRequest], further: Sequence[EditRequest] = (), *, seed: int
) -> RequestFacts:
    """`facts_from_requests` for records without relations, as ZsRE's: the wording of their questions tells them.

    A locality question of theirs is about something else altogether; each request keeps one, told as a line.
    """
    labelled = label_relations([*requests, *further])
    own, other = labelled[: len(requests)], labelled[len(requests) :]
    return facts_from_requests(own, other, seed=seed, unrelated_probes=1)


def reachable(requests: Iterable[EditRequest], facts: Iterable[Fact]) -> list[EditRequest]:
    """The requests whose target is the true answer of a fact with the same relation about another subject.

    A model that memorised its facts has never said anything else, so no edit can make it say another target.
    """
    subjects: dict[tuple[str, str], set[str]] = defaultdict(set)
    for fact in facts:
        subjects[fact.relation, fact.answer].add(fact.subject)
    return [r for r in requests if subjects.get((r.relation or "", r.target_new), set()) - {r.subject}]


class _FactBook:
    """Facts gathered so far, at most one answer per subject and relation and per filled-in prompt."""

    def __init__(self, requests: Sequence[EditRequest]):
        self._answers: dict[tuple[str, str], str] = {}
        self._templates: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._said: dict[str, str] = {}
        self._relation_templates: dict[str, list[str]] = defaultdict(list)
        for request in requests:
            template = template_of(request, request.text)
            if template is not None and template not in self._relation_templates[request.relation]:
                self._relation_templates[request.relation].append(template)

    def known(self) -> list[tuple[str, str]]:
        return list(self._answers)

    def facts(self) -> list[Fact]:
        return [
            Fact(subject, relation, tuple(self._templates[subject, relation]), answer)
            for (subject, relation), answer in self._answers.items()
        ]

    def tell(self, subject: str, relation: str, template: str | None, answer: str) -> bool:
        """Note a fact in one template; False, and nothing noted, where it contradicts an earlier one."""
        if template is None:
            return False
        key, text = (subject, relation), template.replace("{}", subject)
        if self._answers.get(key, answer) != answer or self._said.get(text, answer) != answer:
            return False
        self._answers[key] = self._said[text] = answer
        if template not in self._templates[key]:
            self._templates[key].append(template)
        return True

    def tell_paraphrases(self, request: EditRequest, most: int) -> tuple[str, ...]:
        """The first `most` paraphrases that name the subject, noted as templates of the request's fact."""
        kept: list[str] = []
        for text in request.paraphrase_texts:
            template = template_of(request, text)
            if len(kept) < most and self.tell(request.subject, request.relation, template, request.target_true):
                kept.append(text)
        return tuple(kept)

    def tell_probes(self, request: EditRequest, most: int, edited: set[tuple[str, str]]) -> tuple[Probe, ...]:
        """The first `most` probes that a template of the relation fits, noted as facts; none about an edited one."""
        kept = []
        for probe in request.locality:
            if len(kept) < most and (found := self._find(probe.prompt, request.relation)) is not None:
                subject, template = found
                is_edited = (subject, request.relation) in edited
                if not is_edited and self.tell(subject, request.relation, template, probe.answer):
                    kept.append(probe)
        return tuple(kept)

    def unrelated_probes(self, request: EditRequest) -> tuple[Probe, ...]:
        """The probes that no template of the relation fits."""
        return tuple(probe for probe in request.locality if self._find(probe.prompt, request.relation) is None)

    def tell_further(self, request: EditRequest) -> bool:
        """Note a request under its relation; without one, under the relation of its template that knows its answer."""
        template = template_of(request, request.text)
        if request.relation in self._relation_templates:
            return self.tell(request.subject, request.relation, template, request.target_true)
        relations = [name for name, templates in self._relation_templates.items() if template in templates]
        if not relations:
            return False
        known = {relation for (_, relation), answer in self._answers.items() if answer == request.target_true}
        relation = next((name for name in relations if name in known), relations[0])
        return self.tell(request.subject, relation, template, request.target_true)

    def widen(self, key: tuple[str, str], count: int, rng: random.Random) -> None:
        """Tell a fact in further templates of its relation, up to `count`, where they say nothing else yet."""
        own = self._relation_templates[key[1]]
        missing = [template for template in own if template not in self._templates[key]]
        plain = sum(template in own for template in self._templates[key])
        for template in rng.sample(missing, len(missing)):
            if plain >= count:
                break
            plain += self.tell(*key, template, self._answers[key])

    def _find(self, text: str, relation: str) -> tuple[str, str] | None:
        """Subject and template of a prompt: of the relation's templates that fit, the longest."""
        found = []
        for template in self._relation_templates[relation]:
            head, tail = template.split("{}")
            subject = text[len(head) : len(text) - len(tail)]
            if subject.strip() and text == head + subject + tail:
                found.append((len(template), subject, template))
        return max(found)[1:] if found else None
