"""`coachhook rollback`: take the last steps back."""

from __future__ import annotations

from typing import Annotated

import typer

from coachhook.cli.console import console, print_json
from coachhook.cli.shared import EditsArgument, JsonOption, folder_bytes, one_line_errors, only_writer


def rollback(
    directory: EditsArgument,
    to: Annotated[int, typer.Option(min=0, help="the last step to keep; 0: none")],
    as_json: JsonOption = False,
) -> None:
    """Go back to a step, as if the later ones had never been.

    They are deleted: copy the directory first to keep them. No model is loaded.

    Example:
      coachhook rollback my-edits --to 1
    """
    with one_line_errors():
        from coachhook.needs import size
        from coachhook.saved_edits import read_edits, truncate_edits

        read_edits(directory)  # says what is wrong there before anything is made
        with only_writer(directory):
            before = len(read_edits(directory).steps)
            truncate_edits(directory, to)
        total = folder_bytes(directory)
        if as_json:
            print_json({"directory": str(directory), "step": to, "removed_steps": before - to, "bytes": total})
        else:
            gone = {0: "no step", 1: f"step {before}"}.get(before - to, f"steps {to + 1} to {before}")
            console().print(f"{directory} is at step {to}, {size(total)}; {gone} removed.", soft_wrap=True)
