"""The `coachhook` command; one module for each of its larger subcommands."""

from __future__ import annotations

import logging
import sys

import typer

from coachhook.cli.covariance_command import covariance
from coachhook.cli.plan_command import plan
from coachhook.cli.shared import one_line_errors

__all__ = ["app", "one_line_errors"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(covariance)
app.command()(plan)


@app.callback()
def main() -> None:
    """Edit facts in a language model, batch after batch, without touching its weights."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("coachhook").setLevel(logging.INFO)  # not the libraries': the hub's client tells every request


@app.command()
def methods() -> None:
    """List the editing methods."""
    from coachhook.editors import methods as names

    for name in names():
        typer.echo(name)
