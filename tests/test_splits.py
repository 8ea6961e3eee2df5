import json
from dataclasses import asdict, replace

import pytest

from coachhook.facts import facts_from_requests
from coachhook.requests import EditRequest, Probe
from coachhook.splits import training_requests, training_requests_from_facts, tuning_requests
from coachhook.world import WorldConfig, make_world, world_requests

TINY = WorldConfig(subjects=60, relations=3, reserved=20, answers=10, first_names=16, last_names=16)


@pytest.fixture(scope="module")
def world():
    return make_world(TINY, seed=0)


def _texts(requests) -> str:
    return json.dumps([asdict(request) for request in requests])


def test_no_stream_and_no_fact_names_a_subject_that_editors_are_trained_on(world):
    training = training_requests(world, seed=0)
    strangers = {request.subject for request in training}
    streamed = _texts(
        [
            *world_requests(world, "completions", 40, seed=0),
            *world_requests(world, "questions", 40, seed=1),
            *tuning_requests(world, "completions", 40, 0, world_requests(world, "completions", 40, seed=0)),
        ]
    )
    told = {fact.subject for fact in world.facts}
    probed = {probe.prompt for request in training for probe in request.locality}
    assert not strangers & told
    assert not any(stranger in streamed for stranger in strangers)
    assert not any(person in prompt for person in told for prompt in probed)


def test_training_has_both_forms_and_as_many_requests_as_the_names_allow(world):
    training = training_requests(world, seed=0)
    subjects = {fact.subject for fact in world.facts}
    pairs = len({s.split()[0] for s in subjects}) * len({s.split(" ", 1)[1] for s in subjects})
    free = pairs - len(subjects)
    assert len(training) == 2 * (free - free // 4)
    assert sum(request.prompt.endswith("?") for request in training) == len(training) // 2
    assert len(training_requests(make_world(WorldConfig(), 0), seed=0)) == 600


def test_no_probe_is_about_a_fact_that_training_edits_in_either_form(world):
    training = training_requests(world, seed=0)
    edited = {(request.subject, request.relation) for request in training}
    assert len(edited) == len({subject for subject, _ in edited}) == len(training) // 2
    templates = {fact.relation: fact.templates for fact in world.facts}
    asked = {template.replace("{}", subject) for subject, relation in edited for template in templates[relation]}
    assert not asked & {probe.prompt for request in training for probe in request.locality}


def test_strangers_bear_names_of_the_world_and_nobody_knows_the_truth_about_them(world):
    firsts, lasts = zip(*(fact.subject.split(" ", 1) for fact in world.facts), strict=True)
    templates = {template for fact in world.facts for template in fact.templates}
    answers = {fact.answer for fact in world.facts}
    for request in training_requests(world, seed=0):
        first, last = request.subject.split(" ", 1)
        assert first in firsts
        assert last in lasts
        assert request.target_true is None
        assert request.target_new in answers
        assert {request.prompt, *request.paraphrases} <= templates
        assert {probe.kind for probe in request.locality} == {"same_subject", "other_subject"}


def test_the_seed_decides_the_training_requests(world):
    assert training_requests(world, seed=0) == training_requests(world, seed=0)
    assert training_requests(world, seed=0) != training_requests(world, seed=1)


def test_a_world_without_free_names_has_no_training_requests():
    full = make_world(WorldConfig(subjects=16, reserved=4, first_names=4, last_names=4), seed=0)
    assert training_requests(full, seed=0) == []


def test_tuning_edits_other_facts_of_the_same_people(world):
    streamed = world_requests(world, "completions", 40, seed=0) + world_requests(world, "questions", 40, seed=1)
    tuning = tuning_requests(world, "completions", 40, 0, streamed)
    edited, tuned = ({(r.subject, r.relation) for r in requests} for requests in (streamed, tuning))
    assert not edited & tuned
    assert {subject for subject, _ in tuned} == {subject for subject, _ in edited}
    assert len(tuned) == 40
    everything = [replace(r, relation=name.name) for r in streamed for name in world.relations]
    with pytest.raises(ValueError, match="count is 40: too few facts are left"):
        tuning_requests(world, "completions", 40, 0, everything)


def test_without_streams_to_keep_away_from_tuning_draws_as_streams_do(world):
    assert tuning_requests(world, "questions", 30, 7, []) == world_requests(world, "questions", 30, 7)


@pytest.fixture(scope="module")
def records():
    """People born in one of two cities, each record with a probe about the person after the next."""
    people = [f"Person{letter}" for letter in "ABCDEFGH"]
    cities = ["Rome", "Oslo"] * 4
    return [
        EditRequest(
            subject=person,
            prompt="{} was born in" if number % 2 else "The birthplace of {} is",
            target_new=cities[number - 1],
            target_true=cities[number],
            locality=(Probe(f"{people[(number + 2) % 8]} was born in", cities[number]),),
            relation="birthplace",
        )
        for number, person in enumerate(people)
    ]


def test_of_real_records_editors_are_trained_on_facts_that_the_stream_does_not_touch(records):
    known = facts_from_requests(records, seed=0)
    streamed = known.requests[:2]
    training = training_requests_from_facts(known.facts, streamed, seed=0)
    truth = {fact.subject: fact for fact in known.facts}
    touched = [person for person in truth if person in _texts(streamed)]
    assert training
    assert len(training) == len(truth) - len(touched)
    for request in training:
        fact = truth[request.subject]
        assert request.subject not in touched
        assert not any(person in probe.prompt for person in touched for probe in request.locality)
        assert (request.target_true, request.relation) == (fact.answer, fact.relation)
        assert request.target_new != fact.answer
        assert {request.prompt, *request.paraphrases} == set(fact.templates)
        assert all(probe.answer != request.target_new for probe in request.locality)
    assert training == training_requests_from_facts(known.facts, streamed, seed=0)


def test_facts_told_once_or_without_another_answer_train_nothing(records):
    known = facts_from_requests(records[:1] + records[2:3], seed=0)
    assert {fact.answer for fact in known.facts} == {"Rome"}
    assert training_requests_from_facts(known.facts, [], seed=0) == []
