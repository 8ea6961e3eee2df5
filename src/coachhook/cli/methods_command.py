"""`coachhook methods`: what there is to choose from."""

from __future__ import annotations

from coachhook.cli.console import console, print_json, table
from coachhook.cli.shared import JsonOption, one_line_errors


def methods(as_json: JsonOption = False) -> None:
    """List the editing methods.

    With where their edits act, what they need, and their papers.

    Example:
      coachhook methods
    """
    with one_line_errors():
        rows = _rows()
        if as_json:
            print_json(rows)
            return
        told = [(row["name"], row["effect"], _needs(row), row["paper"]) for row in rows]
        console().print(table(("method", "acts", "needs", "paper"), told))


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
