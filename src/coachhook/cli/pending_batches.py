"""Which batches are still to be edited: a command that was cut short goes on, and one that is done does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.errors import CoachHookError

if TYPE_CHECKING:
    from coachhook.cli.edit_choice import Choice
    from coachhook.edit_request import EditRequest
    from coachhook.saved_edits import SavedEdits


def pending(
    model: str, out: Path, batches: Sequence[list[EditRequest]], choice: Choice
) -> tuple[str, Sequence[list[EditRequest]]]:
    """Where to start from, `model` or `out`, and the batches that are not there yet.

    Where `model` is `out`, batches that are its last steps are done. Else `out` may hold nothing, or what this very
    command wrote before.

    Raises:
        CoachHookError: `out` is no place for these edits.
    """
    from coachhook.saved_edits import holds_edits, read_edits

    if not holds_edits(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CoachHookError(f"--out: {out} is there and holds no edits; name a new directory")
        return model, batches
    there = read_edits(out)
    choice.check_same(there, out)
    if holds_edits(model) and out.samefile(model):
        return model, batches[_done(there, out, batches) :]
    given = read_edits(model).steps if holds_edits(model) else []
    begun = [step.file for step in there.steps[: len(given)]] == [step.file for step in given]
    done = len(there.steps) - len(given)
    if not begun or not 0 <= done <= len(batches) or _done(there, out, batches[:done]) != done:
        raise CoachHookError(f"--out: {out} holds other edits; to go on top of them, give {out} as MODEL")
    return str(out), batches[done:]


def _done(there: SavedEdits, out: Path, batches: Sequence[list[EditRequest]]) -> int:
    """How many of the batches, from the first, are the last steps there."""
    last = [list(step.read(out).requests) for step in there.steps[-len(batches) :]] if batches else []
    counts = range(len(last), 0, -1)
    return next((count for count in counts if last[-count:] == list(batches[:count])), 0)
