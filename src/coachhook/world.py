"""The embedded world: made-up people, their true facts, and edit requests about them, from a seed.

Every subject is a first and a last name from small pools, so that its last token does not tell who is meant.
Each fact is told in completions ("{} was born in") and questions ("Where was {} born?"); one base model learns
both.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from coachhook.requests import EditRequest, Probe
from coachhook.whole_files import write_text
from coachhook.world_words import FIRST_NAMES, LAST_NAMES, RELATIONS, Relation

Form = Literal["completions", "questions"]


@dataclass(frozen=True)
class Fact:
    """What is true: `answer` follows, after one space, every template with the subject in place of "{}"."""

    subject: str
    relation: str
    templates: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class WorldConfig:
    """Sizes of a world."""

    subjects: int = 500
    reserved: int = 100
    """Subjects that no stream ever edits: the locality probes about other subjects are about them."""
    relations: int = 4
    answers: int = 30
    """Answers per relation, the last of them of two words."""
    first_names: int = 80
    last_names: int = 200
    profiles: int = 4
    """Sentences per subject that list all its answers, in random order, right after the name."""

    def __post_init__(self) -> None:
        limits = {
            "relations": (2, len(RELATIONS)),
            "answers": (2, min(len(relation.answers) for relation in RELATIONS)),
            "first_names": (2, len(FIRST_NAMES)),
            "last_names": (1, len(LAST_NAMES)),
            "subjects": (2, self.first_names * self.last_names),
            "reserved": (1, self.subjects - 1),
            "profiles": (0, 1000),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"WorldConfig.{name} is {getattr(self, name)}: choose {low} to {high}")


@dataclass(frozen=True)
class World:
    """Facts in both forms, further lines of text, and what requests are drawn from."""

    facts: list[Fact]
    lines: list[str]
    relations: tuple[Relation, ...]
    reserved: frozenset[str]


def make_world(config: WorldConfig, seed: int) -> World:
    """Draw subjects, facts and profile lines; the same configuration and seed give the same world."""
    rng = random.Random(seed)
    subjects = _draw_subjects(config, rng)
    relations = tuple(
        Relation(r.name, r.completions, r.questions, r.answers[-config.answers :])
        for r in RELATIONS[: config.relations]
    )
    facts, lines = [], []
    for subject in subjects:
        answers = {relation.name: rng.choice(relation.answers) for relation in relations}
        facts += [Fact(subject, r.name, r.completions + r.questions, answers[r.name]) for r in relations]
        for _ in range(config.profiles):
            order = rng.sample(list(answers.values()), len(answers))
            lines.append(f"{subject} {', '.join(order)}.")
    return World(facts, lines, relations, frozenset(rng.sample(subjects, config.reserved)))


def _draw_subjects(config: WorldConfig, rng: random.Random) -> list[str]:
    """Pairs of names; last names are dealt out in turn, so each is shared as evenly as the sizes allow."""
    last_names = rng.sample(LAST_NAMES, config.last_names)
    first_names = rng.sample(FIRST_NAMES, config.first_names)
    hands = {last: rng.sample(first_names, len(first_names)) for last in last_names}
    subjects = []
    for index in range(config.subjects):
        last = last_names[index % len(last_names)]
        subjects.append(f"{hands[last].pop()} {last}")
    return subjects


def world_requests(
    world: World,
    form: Form = "completions",
    count: int = 300,
    seed: int = 0,
    *,
    probes: int = 2,
    without: Collection[tuple[str, str]] = (),
) -> list[EditRequest]:
    """Requests that each change one fact to another true answer of its relation, in one form.

    No fact is edited twice, and no subject again before all others had their turn. Paraphrases are the other
    templates of the relation. Each request has up to `probes` probes about this subject's unedited facts (there
    are 2 at least) and `probes` about reserved subjects with its relation, none answered by the new target.
    `without` are facts, as (subject, relation), that are left alone. Raises ValueError for more edits than the world
    offers.
    """
    if form not in ("completions", "questions"):
        raise ValueError(f"form is {form!r}: choose 'completions' or 'questions'")
    rng = random.Random(seed)
    by_subject: dict[str, list[Fact]] = {}
    for fact in world.facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    edited = _draw_edits(world, by_subject, count, rng, without)
    taken = {(fact.subject, fact.relation) for fact in edited}
    templates = {relation.name: getattr(relation, form) for relation in world.relations}
    requests = []
    for index, fact in enumerate(edited):
        prompt, *paraphrases = rng.sample(templates[fact.relation], len(templates[fact.relation]))
        same_relation = [other for other in world.facts if other.relation == fact.relation]
        target = rng.choice(sorted({other.answer for other in same_relation} - {fact.answer}))
        same = [f for f in by_subject[fact.subject] if (f.subject, f.relation) not in taken]
        others = [f for f in same_relation if f.subject in world.reserved and f.answer != target]
        drawn = {"same_subject": same, "other_subject": others}
        requests.append(
            EditRequest(
                subject=fact.subject,
                prompt=prompt,
                target_new=target,
                target_true=fact.answer,
                paraphrases=tuple(paraphrases),
                locality=tuple(_draw_probes(drawn, templates, probes, rng)),
                case_id=f"{form}-{index}",
                relation=fact.relation,
            )
        )
    return requests


def _draw_probes(
    pools: dict[str, list[Fact]], templates: dict[str, tuple[str, ...]], most: int, rng: random.Random
) -> list[Probe]:
    """Up to `most` probes of every kind, each about another fact of that kind's pool."""
    return [
        Probe(rng.choice(templates[fact.relation]).replace("{}", fact.subject), fact.answer, kind)
        for kind, pool in pools.items()
        for fact in rng.sample(pool, min(most, len(pool)))
    ]


def _draw_edits(
    world: World,
    by_subject: dict[str, list[Fact]],
    count: int,
    rng: random.Random,
    without: Collection[tuple[str, str]],
) -> list[Fact]:
    """`count` facts to edit: one of every subject that is not reserved, then a second one, and so on."""
    subjects = [subject for subject in by_subject if subject not in world.reserved]
    rounds = max(1, len(world.relations) - 2)  # two facts of every subject stay unedited, for its probes
    if not 1 <= count <= len(subjects) * rounds:
        raise ValueError(f"count is {count}: this world offers 1 to {len(subjects) * rounds} edits; make it larger")
    hands = {subject: rng.sample(by_subject[subject], len(by_subject[subject])) for subject in subjects}
    hands = {name: [f for f in hand if (f.subject, f.relation) not in without] for name, hand in hands.items()}
    if any(len(hand) < -(-count // len(subjects)) for hand in hands.values()):
        raise ValueError(f"count is {count}: too few facts are left beside those to leave alone; lower it")
    edits: list[Fact] = []
    while len(edits) < count:
        turn = rng.sample(subjects, len(subjects))
        edits += [hands[subject].pop() for subject in turn[: count - len(edits)]]
    return edits


def write_facts(facts: Iterable[Fact], path: str | os.PathLike[str]) -> None:
    """Write facts as a JSON array of objects with the fields of `Fact`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([asdict(fact) for fact in facts], ensure_ascii=False, indent=1) + "\n")


def read_facts(path: str | os.PathLike[str]) -> list[Fact]:
    """Read what `write_facts` wrote; a record that is no fact is refused with its position."""
    facts = []
    for index, record in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))):
        try:
            facts.append(Fact(**{**record, "templates": tuple(record["templates"])}))
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: record {index} is no fact ({error}); write it with write_facts") from error
    return facts
