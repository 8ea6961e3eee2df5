from pathlib import Path

import pytest

from coachhook.relations import label_relations, template_of
from coachhook.requests import EditRequest, read_requests

ZSRE = Path(__file__).parents[2] / "shared" / "data" / "zsre_mend_eval.json"


def _ask(subject: str, prompt: str, true: str = "Yes", rephrase: str | None = None, **more) -> EditRequest:
    paraphrases = (rephrase.replace("{}", subject),) if rephrase else ()
    text = prompt.replace("{}", subject)
    return EditRequest(subject, text, "No", target_true=true, paraphrases=paraphrases, **more)


def _relations(*requests: EditRequest) -> list[str | None]:
    return [request.relation for request in label_relations(requests)]


def test_a_rephrasing_joins_two_questions():
    asked = (
        _ask("Ada", "What did {} study?", rephrase="Which subject was taught to {}?"),
        _ask("Bob", "Which subject was taught to {}?", "Law"),
    )
    assert len(set(_relations(*asked))) == 1
    assert _relations(asked[0], _ask("Bob", "Where was {} born?", "Rome"))[0] != _relations(asked[1])[0]


def test_the_same_answer_about_the_same_subject_joins_two_questions():
    one, other = _ask("Ada", "Who wrote {}?", "Carl"), _ask("Ada", "The author of {} is whom?", "Carl")
    assert len(set(_relations(one, other))) == 1
    assert len(set(_relations(one, _ask("Ada", "The author of {} is whom?", "Dora")))) == 2
    assert len(set(_relations(one, _ask("Eve", "The author of {} is whom?", "Carl")))) == 2


def test_little_words_join_two_questions_but_not_when_with_where():
    asked = [_ask("Ada", "In which state is {} located?", "Utah"), _ask("Bob", "What state is {} located in?", "Ohio")]
    assert len(set(_relations(*asked))) == 1
    born = [_ask("Ada", "When was {} born?", "1815"), _ask("Bob", "Where was {} born?", "Rome")]
    assert len(set(_relations(*born))) == 2


def test_questions_of_nothing_but_little_words_join_nothing():
    assert len(set(_relations(_ask("Ada", "What is {}?", "A"), _ask("Bob", "Who was {}?", "B")))) == 2


def test_joining_goes_on_through_other_questions_and_the_commonest_names_the_relation():
    asked = (
        _ask("Ada", "Who taught {}?", "X", rephrase="By whom was {} schooled?"),
        _ask("Bob", "By whom was {} schooled?", "Y", rephrase="Who was the tutor of {}?"),
        _ask("Carl", "Who was the tutor of {}?", "Z"),
        _ask("Dora", "Who was the tutor of {}?", "W"),
    )
    assert _relations(*asked) == ["Who was the tutor of {}?"] * 4


def test_a_relation_that_is_known_stays_and_a_subject_written_otherwise_gives_none():
    known = _ask("Ada", "Who taught {}?", relation="P1066")
    other = EditRequest("ada lovelace", "Who taught Ada Lovelace?", "No")
    assert _relations(known, other) == ["P1066", None]
    assert template_of(other, other.text) is None


@pytest.mark.skipif(not ZSRE.exists(), reason="needs the real records in ../shared/data")
def test_real_questions_fall_into_relations_that_one_would_name_so():
    asked = label_relations(read_requests(ZSRE, refused=[]))
    groups: dict[str, set[str]] = {}
    for request in asked:
        groups.setdefault(request.relation, set()).add(template_of(request, request.text))
    assert 60 < len(groups) < 160
    together = (
        ("What university did {} attend?", "What college did {} go to?"),
        ("Who was the dad of {}?", "What is the name of {} father?"),
    )
    of = {template: relation for relation, templates in groups.items() for template in templates}
    for templates in together:
        assert len({of[template] for template in templates}) == 1
    apart = ["Who was the mother of {}?", "Who is the director of {}?", "When was {} born?", "When did {} die?"]
    assert len({of[template] for template in apart}) == len(apart)
