"""The journal: what each step did, one safetensors file a step, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from coachhook.editors.base import Update
from coachhook.errors import CoachHookError

_FORMAT = 1


class JournalError(CoachHookError):
    """A journal file is damaged or of another format."""


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file under a temporary name, sync it, and rename it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def step_path(directory: str | os.PathLike, step: int) -> Path:
    return Path(directory) / f"{step:06d}.safetensors"


def write_step(directory: str | os.PathLike, step: int, update: Update) -> None:
    """Store the update of step `step` (from 1)."""
    path = step_path(directory, step)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata = {"format": str(_FORMAT), "step": str(step), "info": json.dumps(update.info, sort_keys=True)}
    # One key, as safetensors writes several in random order, and the same step should be the same bytes.
    packed = {"coachhook": json.dumps(metadata, sort_keys=True)}
    save_file({name: tensor.contiguous() for name, tensor in update.tensors.items()}, temporary, packed)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_step(directory: str | os.PathLike, step: int) -> Update | None:
    """The update of step `step`, or None where it was never stored.

    Raises:
        JournalError: the file is there but damaged.
    """
    path = step_path(directory, step)
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("coachhook", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
    except (SafetensorError, OSError) as error:
        raise JournalError(f"{path}: damaged ({error}); delete it and start again") from None
    if metadata.get("format") != str(_FORMAT):
        raise JournalError(f"{path}: format {metadata.get('format')} is not {_FORMAT}; use the version that wrote it")
    return Update(tensors, json.loads(metadata["info"]))
