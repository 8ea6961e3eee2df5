"""`coachhook methods`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from coachhook.cli.console import console, print_json, table
from coachhook.cli.shared import JsonOption, one_line_errors


def methods(
    name: Annotated[str | None, typer.Argument(metavar="METHOD", help="list its hyper-parameters")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the editing methods, or the hyper-parameters of one.

    Methods with where their edits act, what they need, and their papers;
    hyper-parameters with their kind and default, to be set with
    `coachhook edit --set NAME=VALUE`.

    Examples:
      coachhook methods
      coachhook methods coachhook-leverage
    """
    with one_line_errors():
        if name is not None:
            _show_hyperparameters(name, as_json)
            return
        rows = _rows()
        if as_json:
            print_json(rows)
            return
        told = [(row["name"], row["effect"], _needs(row), row["paper"]) for row in rows]
        console().print(table(("method", "acts", "needs", "paper"), told))


def _show_hyperparameters(name: str, as_json: bool) -> None:
    from coachhook.hyperparameters import hyperparameters

    found = hyperparameters(name)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    told = [(one.name, one.allowed, one.told_default(), one.description) for one in found]
    console().print(table(("name", "value", "default", "what it is"), told))


def _rows() -> list[dict]:
    from coachhook.editors import METHODS
    from coachhook.editors.base import TrainedMethod

    rows = []
    for name, entry in METHODS.items():
        method = entry.load()
        row = {"name": name, "effect": method.effect, "paper": method.paper, "grows": method.growing_state}
        row |= {"needs_covariance": method.needs_covariance, "needs_training": issubclass(method, TrainedMethod)}
        rows.append(row)
    return rows


def _needs(row: dict) -> str:
    needs = {"covariance": row["needs_covariance"], "training": row["needs_training"]}
    return ", ".join(name for name, needed in needs.items() if needed)
