"""The pages on methods, models and covariances say what the code says."""

import re
from pathlib import Path

import typer
from families import FAMILIES

from coachhook import cli
from coachhook.architectures import ARCHITECTURES
from coachhook.editors import METHODS
from coachhook.layers import PUBLISHED

DOCS = Path(__file__).parents[1] / "docs"
MODELS = (DOCS / "models.md").read_text(encoding="utf-8")
PAGE = (DOCS / "methods.md").read_text(encoding="utf-8")
COVARIANCES = (DOCS / "covariance.md").read_text(encoding="utf-8")


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


def test_the_table_of_models_is_the_registry():
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in MODELS.splitlines() if line.startswith("| ")
    ]
    head, *rows = rows
    told = {row["model type"]: row for row in (dict(zip(head, row, strict=True)) for row in rows)}
    assert list(told) == list(ARCHITECTURES)
    tested = {family.model_type: family for family in reversed(FAMILIES.values())}  # of two OPTs the usual one
    for model_type, row in told.items():
        architecture, family = ARCHITECTURES[model_type], tested[model_type]
        assert (row["blocks"], row["rewrite module"], row["final norm"]) == (
            family.blocks,
            family.rewrite_module,
            family.norm,
        )
        assert row["rewrite module"] == architecture.rewrite_module
        assert row["blocks"].endswith(architecture.blocks)
        assert row["final norm"].endswith(architecture.final_norm)
        published = PUBLISHED.get(model_type)
        layers = f"{published.first}–{published.last} of {published.depth}" if published else "–"
        assert (row["published layers"], row["of"]) == (layers, published.source if published else "–")


def test_options_that_are_told_of_are_there():
    commands = typer.main.get_command(cli.app).commands
    there = {option for name in ("covariance", "plan") for given in commands[name].params for option in given.opts}
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", COVARIANCES))
    assert len(told) > 10
    assert told <= there
