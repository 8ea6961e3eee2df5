"""The `coachhook` command; one module for each subcommand, so that nothing heavy is imported before it is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from coachhook.cli.console import log_lines
from coachhook.cli.covariance_command import covariance
from coachhook.cli.edit_command import edit
from coachhook.cli.evaluate_command import evaluate
from coachhook.cli.generate_command import diff, generate
from coachhook.cli.inspect_command import inspect
from coachhook.cli.methods_command import methods
from coachhook.cli.plan_command import plan
from coachhook.cli.rollback_command import rollback
from coachhook.cli.shared import one_line_errors
from coachhook.cli.verify_command import verify

__all__ = ["app", "one_line_errors"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
for _command in (edit, generate, diff, evaluate, inspect, rollback):
    app.command(rich_help_panel="Edit a model")(_command)
for _command in (covariance, plan, methods, verify):
    app.command(rich_help_panel="Prepare")(_command)


def _tell_version(asked: bool) -> None:
    if asked:
        from coachhook import __version__

        typer.echo(f"coachhook {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="show the version and exit")
    ] = False,
) -> None:
    r"""Edit facts in a language model, batch after batch.

    A first session:
      coachhook covariance gpt2-xl --texts articles.txt \
          --layers 13,14,15,16,17 --out c.safetensors
      coachhook edit gpt2-xl --requests week-1.json \
          --covariance c.safetensors --out my-edits
      coachhook diff my-edits "Ada Lovelace was born in"

    Exit status: 0 done; 1 a mistake in what was given, told in one line; 2 a
    mistake in the command itself; 3 a dry run of `edit` found that something
    would get worse.
    """
    log_lines()
