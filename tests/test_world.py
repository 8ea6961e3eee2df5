import json
from collections import Counter, defaultdict

import pytest

from coachhook.world import Fact, WorldConfig, make_world, read_facts, world_requests, write_facts

TINY = WorldConfig(subjects=60, relations=3, reserved=20, answers=10, first_names=16, last_names=16)


@pytest.fixture(scope="module")
def world():
    return make_world(TINY, seed=0)


def test_seed_decides_the_world(world):
    assert make_world(TINY, seed=0) == world
    assert make_world(TINY, seed=1).facts != world.facts


def test_every_subject_has_one_answer_per_relation_in_both_forms(world):
    assert len(world.facts) == 60 * 3
    assert len({(fact.subject, fact.relation) for fact in world.facts}) == 60 * 3
    for fact in world.facts:
        assert len(fact.templates) == len(set(fact.templates)) == 7
        assert all(template.count("{}") == 1 for template in fact.templates)
        assert sum(template.endswith("?") for template in fact.templates) == 3


def test_default_sizes_serve_a_stream_of_300():
    world = make_world(WorldConfig(), seed=0)
    assert len(world.facts) == 500 * 4
    assert len(world.reserved) >= 100
    assert len(world_requests(world, "questions", 300, seed=0)) == 300


def test_a_last_name_does_not_tell_who_is_meant(world):
    shared = Counter(subject.split()[-1] for subject in {fact.subject for fact in world.facts})
    assert min(shared.values()) >= 2, shared


def test_profiles_list_the_subjects_own_answers(world):
    answers = defaultdict(set)
    for fact in world.facts:
        answers[fact.subject].add(fact.answer)
    assert len(world.lines) == 60 * TINY.profiles
    for line in world.lines:
        first, last, listed = line.removesuffix(".").split(" ", maxsplit=2)
        assert set(listed.split(", ")) == answers[f"{first} {last}"]


@pytest.mark.parametrize("form", ["completions", "questions"])
def test_requests_change_true_facts_to_reachable_targets(world, form):
    truth = {(fact.subject, fact.relation): fact for fact in world.facts}
    answers = defaultdict(set)
    for fact in world.facts:
        answers[fact.relation].add(fact.answer)
    requests = world_requests(world, form, count=40, seed=3)
    assert len({request.subject for request in requests}) == 40
    for request in requests:
        fact = truth[request.subject, request.relation]
        assert request.target_true == fact.answer != request.target_new
        assert request.target_new in answers[request.relation]
        assert len(request.paraphrases) >= 2
        templates = (request.prompt, *request.paraphrases)
        assert len(set(templates)) == len(templates)
        assert set(templates) <= set(fact.templates)
        assert all(template.endswith("?") == (form == "questions") for template in templates)


def test_probes_ask_for_facts_that_no_edit_touches(world):
    said = {t.replace("{}", f.subject): f for f in world.facts for t in f.templates}
    requests = world_requests(world, count=40, seed=3, probes=3)
    edited = {(request.subject, request.relation) for request in requests}
    for request in requests:
        kinds = Counter(probe.kind for probe in request.locality)
        assert kinds == {"same_subject": 2, "other_subject": 3}
        for probe in request.locality:
            fact = said[probe.prompt]
            assert probe.answer == fact.answer
            assert (fact.subject, fact.relation) not in edited
            if probe.kind == "same_subject":
                assert fact.subject == request.subject
            else:
                assert fact.subject in world.reserved
                assert fact.relation == request.relation
                assert fact.answer != request.target_new


def test_more_edits_than_subjects_never_repeat_a_fact():
    world = make_world(WorldConfig(subjects=30, relations=5, reserved=10, first_names=10, last_names=10), seed=0)
    requests = world_requests(world, count=55, seed=0)
    assert len({(request.subject, request.relation) for request in requests}) == 55
    turns = Counter(request.subject for request in requests)
    assert set(turns.values()) == {2, 3}
    assert all(sum(p.kind == "same_subject" for p in r.locality) >= 2 for r in requests)


def test_too_many_edits_and_unknown_forms_are_refused(world):
    with pytest.raises(ValueError, match="count is 41: this world offers 1 to 40"):
        world_requests(world, count=41)
    with pytest.raises(ValueError, match="form is 'poems'"):
        world_requests(world, "poems", count=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("subjects", 16001), ("reserved", 600), ("relations", 7), ("answers", 31), ("profiles", -1)],
)
def test_impossible_sizes_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"WorldConfig.{field} is {value}"):
        WorldConfig(**{field: value})


def test_facts_survive_the_file(world, tmp_path):
    path = tmp_path / "deep" / "facts.json"
    write_facts(world.facts, path)
    assert read_facts(path) == world.facts
    assert [entry.name for entry in path.parent.iterdir()] == ["facts.json"]


def test_a_bad_fact_is_refused_with_file_and_position(tmp_path):
    path = tmp_path / "facts.json"
    write_facts([Fact("Ada", "born", ("{} is from",), "Rome")] * 2, path)
    records = json.loads(path.read_text())
    del records[1]["answer"]
    path.write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"facts\.json: record 1"):
        read_facts(path)
