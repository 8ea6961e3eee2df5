from dataclasses import replace

import pytest

from coachhook.facts import facts_from_questions, facts_from_requests, reachable
from coachhook.requests import EditRequest, Probe
from coachhook.world import Fact

BORN = [
    EditRequest(
        subject="Ada",
        prompt="{} was born in",
        target_new="Paris",
        target_true="London",
        paraphrases=("Odd text.\nAda comes from", "Nobody knows"),
        locality=(Probe("Bob was born in", "London"), Probe("Unknown pattern about", "London")),
        relation="born",
    ),
    EditRequest(
        subject="Carl",
        prompt="The birthplace of {} is",
        target_new="Berlin",
        target_true="Paris",
        # Eve's birthplace is edited by a later request
        locality=(Probe("The birthplace of Dora is", "Paris"), Probe("Eve was born in", "Paris")),
        relation="born",
    ),
    EditRequest(subject="Eve", prompt="{} was born in", target_new="London", target_true="Paris", relation="born"),
    EditRequest(subject="Ada", prompt="{} speaks", target_new="Paris", target_true="English", relation="language"),
]
FURTHER = [
    EditRequest(subject="Egon", prompt="Egon was born in", target_new="Rome", target_true="Berlin"),
    EditRequest(subject="Fritz", prompt="Fritz married", target_new="Rome", target_true="Gerda"),
    EditRequest(subject="Ada", prompt="The birthplace of Ada is", target_new="Rome", target_true="Madrid"),
]


def _told(facts):
    return {(f.subject, f.relation): f for f in facts}


def test_facts_of_subjects_probes_and_further_records():
    told = _told(facts_from_requests(BORN, FURTHER, seed=0).facts)
    assert set(told) == {
        ("Ada", "born"),
        ("Bob", "born"),
        ("Carl", "born"),
        ("Eve", "born"),
        ("Dora", "born"),
        ("Ada", "language"),
        ("Egon", "born"),
    }
    assert told["Ada", "born"].answer == "London", "the later record that contradicts does not count"
    assert set(told["Ada", "born"].templates) == {
        "{} was born in",
        "The birthplace of {} is",
        "Odd text.\n{} comes from",
    }
    assert told["Bob", "born"].templates[0] == "{} was born in"
    assert told["Ada", "language"].templates == ("{} speaks",)


def test_template_counts_are_kept():
    told = _told(facts_from_requests(BORN, FURTHER, seed=0, templates_per_other=1, templates_per_subject=1).facts)
    assert told["Egon", "born"].templates == ("{} was born in",)
    assert told["Ada", "born"].templates == ("{} was born in", "Odd text.\n{} comes from")


def test_stream_holds_reachable_requests_and_memorised_prompts_only():
    derived = facts_from_requests(BORN, FURTHER, seed=0)
    assert [(r.subject, r.relation) for r in derived.requests] == [(name, "born") for name in ("Ada", "Carl", "Eve")]
    assert derived.reachable_share == pytest.approx(3 / 4)
    ada, carl, _ = derived.requests
    assert ada.paraphrases == ("Odd text.\nAda comes from",)
    assert [probe.prompt for probe in ada.locality] == ["Bob was born in"]
    assert [probe.prompt for probe in carl.locality] == ["The birthplace of Dora is"]
    said = {t.replace("{}", f.subject): f.answer for f in derived.facts for t in f.templates}
    for request in derived.requests:
        assert said[request.text] == request.target_true
        assert all(said[text] == request.target_true for text in request.paraphrase_texts)
        assert all(said[probe.prompt] == probe.answer for probe in request.locality)


def test_limits_on_paraphrases_and_probes():
    derived = facts_from_requests(BORN, FURTHER, seed=0, paraphrases=0, probes=0)
    assert all(r.paraphrases == r.locality == () for r in derived.requests)
    assert ("Dora", "born") not in _told(derived.facts)


def test_further_records_make_targets_reachable():
    assert facts_from_requests(BORN, seed=0).reachable_share == pytest.approx(2 / 4)


def test_a_target_only_the_subject_itself_has_is_not_reachable():
    request = BORN[0]
    assert reachable([request], [Fact("Ada", "born", ("{} was born in",), "Paris")]) == []
    assert reachable([request], [Fact("Bob", "language", ("{} speaks",), "Paris")]) == []
    assert reachable([request], [Fact("Bob", "born", ("{} was born in",), "Paris")]) == [request]


def test_every_line_says_a_fact_right_behind_the_name():
    derived = facts_from_requests(BORN, FURTHER, seed=0)
    assert set(derived.lines) == {f"{fact.subject} {fact.answer}." for fact in derived.facts}


def test_records_without_relations_are_refused():
    with pytest.raises(ValueError, match="relation and target_true"):
        facts_from_requests([replace(BORN[0], relation=None)], seed=0)


def test_seed_decides_the_templates():
    several = [replace(BORN[0], prompt=f"{{}} number {i} in", subject=f"S{i}") for i in range(8)]
    several = [replace(r, paraphrases=(), locality=()) for r in several]
    one, same, other = (facts_from_requests(several, seed=seed).facts for seed in (0, 0, 1))
    assert one == same != other
    assert all(len(fact.templates) == 5 for fact in one)


QUESTIONS = [
    EditRequest(
        subject="Ada",
        prompt="What college did Ada go to?",
        target_new="Jena",
        target_true="Oxford",
        paraphrases=("What university did Ada attend?",),
        locality=(Probe("who wrote the moon", "Nobody"), Probe("who painted it", "Somebody")),
    ),
    EditRequest("Ada", "What university did Ada attend?", "Bonn", target_true="Oxford"),
    EditRequest("Bob", "What university did Bob attend?", "Oxford", target_true="Jena"),
]


def test_facts_of_records_without_relations_follow_from_their_questions():
    further = [EditRequest("Carl", "What college did Carl go to?", "Rome", target_true="Bonn")]
    derived = facts_from_questions(QUESTIONS, further, seed=0)
    (relation,) = {fact.relation for fact in derived.facts}
    assert _told(derived.facts)["Carl", relation].answer == "Bonn"
    assert [request.target_new for request in derived.requests] == ["Jena", "Bonn", "Oxford"]
    assert derived.reachable_share == 1
    assert facts_from_questions(QUESTIONS, seed=0).reachable_share == pytest.approx(2 / 3)  # nobody went to Bonn


def test_an_unrelated_question_is_kept_and_told_as_a_line():
    derived = facts_from_questions(QUESTIONS, seed=0)
    assert [probe.prompt for probe in derived.requests[0].locality] == ["who wrote the moon"]
    assert "who wrote the moon Nobody." in derived.lines
    assert not any("painted" in line for line in derived.lines)


def test_further_records_count_under_their_own_relation():
    further = replace(FURTHER[0], prompt="Egon first saw the light in", subject="Egon", relation="born")
    assert ("Egon", "born") in _told(facts_from_requests(BORN, [further], seed=0).facts)
