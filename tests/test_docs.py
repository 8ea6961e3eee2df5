"""The page on methods says what the code says."""

import re
from pathlib import Path

from coachhook.editors import METHODS

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")


def test_each_method_has_a_section():
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    told = [name for heading in headings for name in heading.split(", ")]
    assert set(METHODS) <= set(told)


def test_the_table_says_where_edits_act_and_what_grows():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    told = {name: (effect, grows) for names, effect, grows in rows for name in re.findall(r"`(.*?)`", names)}
    assert set(told) == set(METHODS)
    for name, (effect, grows) in told.items():
        method = METHODS[name].load()
        assert (effect == "everywhere") == (method.effect == "everywhere"), name
        assert grows.startswith("nothing") == method.growing_state.startswith("nothing"), name
