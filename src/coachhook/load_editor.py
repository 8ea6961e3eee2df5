"""An editor from a directory of edits alone, on the device that is wanted."""

from __future__ import annotations

import os

import torch

from coachhook.editor import Editor
from coachhook.journal import JournalError
from coachhook.saved_edits import read_edits


def load_editor(
    directory: str | os.PathLike,
    base: str | os.PathLike | None = None,
    *,
    device: str = "auto",
    covariance: str | os.PathLike | None = None,
    step: int | None = None,
) -> Editor:
    """`Editor.from_pretrained`, with its base model loaded for it.

    Arguments:
        base: directory or hub id of the base model; default: the name and revision that the edits know it by.
        device: "auto" is the GPU where there is one.
        covariance: only to edit further, with methods that need one.
        step: stop after this step; 0 is the base model.

    Raises:
        JournalError, CovarianceError: as `Editor.from_pretrained`.
    """
    saved = read_edits(directory)
    saved.first(step, directory)  # refuses before anything large is loaded
    identity = saved.base_model
    if base is not None:
        identity = identity.model_copy(update={"name": str(base), "revision": None})
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = identity.load().to(device)
    except JournalError as error:
        raise JournalError(f"{error}, or name it (base=, on the command line --base)") from None
    return Editor.from_pretrained(directory, model, step=step, covariance=covariance)
