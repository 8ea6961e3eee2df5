"""Requests apart from those that methods are compared on: for training editors (MEND, SERAC), and for tuning.

Three splits share no edited fact: streams edit a fact of each person, tuning another fact of the same people, and
editors are trained on strangers.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from coachhook.requests import EditRequest, Probe
from coachhook.world import Fact, Form, World, world_requests


def tuning_requests(
    world: World, form: Form, count: int, seed: int, streamed: Iterable[EditRequest]
) -> list[EditRequest]:
    """Requests that edit none of the facts that `streamed` edits.

    They edit the same people, so that a search meets keys as crowded as those of the streams it searches for.
    Raises ValueError where the world has too few facts for that.
    """
    edited = {(request.subject, request.relation) for request in streamed}
    return world_requests(world, form, count, seed, without=edited)


def training_requests(world: World, seed: int, people: int = 400) -> list[EditRequest]:
    """Requests in both forms about strangers: the first and last names of the world's people, paired anew.

    No stream names a stranger, in an edit or in a probe. The base model was told nothing about them, yet answers much
    as for people it knows (on the smoke model its likeliest token has a median probability of 0.80 instead of 0.97,
    and 91 % of a relation's templates agree). So no request has a true answer, and the answers of probes are drawn.
    A quarter of the strangers is kept for probes; of each of the others one fact is edited, in both forms, and no
    probe is about it. The result is empty where all pairs of names are taken.
    """
    rng = random.Random(seed)
    known = {fact.subject for fact in world.facts}
    firsts, _, lasts = zip(*(subject.partition(" ") for subject in known), strict=True)
    pairs = itertools.product(sorted(set(firsts)), sorted(set(lasts)))
    free = [name for name in map(" ".join, pairs) if name not in known]
    strangers = rng.sample(free, min(people, len(free)))
    if len(strangers) < 2:
        return []
    facts = [
        Fact(stranger, relation.name, relation.completions + relation.questions, rng.choice(relation.answers))
        for stranger in strangers
        for relation in world.relations
    ]
    probed = max(1, len(strangers) // 4)
    other = World(facts, [], world.relations, frozenset(strangers[:probed]))
    drawn = [
        request
        for form in ("completions", "questions")
        for request in world_requests(other, form, len(strangers) - probed, seed)  # one seed: the same facts
    ]
    return [replace(request, target_true=None, case_id=f"training-{request.case_id}") for request in drawn]


def requests_apart(requests: Iterable[EditRequest], streamed: Iterable[EditRequest]) -> list[EditRequest]:
    """Those requests whose subject no streamed request is about: a published training set may share some."""
    subjects = {request.subject for request in streamed}
    return [request for request in requests if request.subject not in subjects]


def training_requests_from_facts(
    facts: Sequence[Fact], streamed: Iterable[EditRequest], seed: int, *, probes: int = 2
) -> list[EditRequest]:
    """Requests about those facts whose subject no streamed request names, in its own texts or in its probes.

    Each changes a fact to another answer of its relation; its paraphrases are the fact's further templates, its
    probes further such facts of the relation. Facts told in one template, or whose relation has no other answer,
    are left out.
    """
    rng = random.Random(seed)
    named = "\n".join(
        text
        for request in streamed
        for text in (request.text, *request.paraphrase_texts, *(probe.prompt for probe in request.locality))
    )
    free: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact.subject not in named:
            free[fact.relation].append(fact)
    requests = []
    for fact in itertools.chain(*free.values()):
        targets = sorted({other.answer for other in free[fact.relation]} - {fact.answer})
        if not targets or len(fact.templates) < 2:
            continue
        target, (prompt, *paraphrases) = rng.choice(targets), rng.sample(fact.templates, len(fact.templates))
        others = [f for f in free[fact.relation] if f.subject != fact.subject and f.answer != target]
        requests.append(
            EditRequest(
                subject=fact.subject,
                prompt=prompt,
                target_new=target,
                target_true=fact.answer,
                paraphrases=tuple(paraphrases),
                locality=tuple(_probe(other, rng) for other in rng.sample(others, min(probes, len(others)))),
                case_id=f"training-{len(requests)}",
                relation=fact.relation,
            )
        )
    return requests


def _probe(fact: Fact, rng: random.Random) -> Probe:
    return Probe(rng.choice(fact.templates).replace("{}", fact.subject), fact.answer, "other_subject")
