"""The journal: what each step did, one safetensors file a step, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from coachhook.edit_request import EditRequest
from coachhook.editors.base import Update
from coachhook.errors import CoachHookError
from coachhook.whole_files import write_bytes
from coachhook.whole_files import write_text as write_text

_FORMAT = 1


class JournalError(CoachHookError, ValueError):
    """A journal is damaged, of another format, or of another base model."""


@dataclass(frozen=True)
class Step:
    """One applied batch.

    Attributes:
        update: what it wrote.
        requests: what it was asked to write.
        time: when it was edited, ISO 8601 in UTC.
        metrics: numbers by name for each protocol, as far as `Editor.record` was given any.
    """

    update: Update
    requests: tuple[EditRequest, ...]
    time: str
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @classmethod
    def now(cls, update: Update, requests: Sequence[EditRequest]) -> Step:
        """A step that is applied at this moment."""
        return cls(update, tuple(requests), datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class StepReport:
    """What `Editor.edit` did.

    Attributes:
        step: number of batches applied, this one included.
        requests: size of this batch.
        thresholds: the gate's threshold per layer after the step; None for methods without one.
        update: what the step wrote; `Editor.replay` applies it again.
    """

    step: int
    requests: int
    thresholds: dict[int, float] | None
    update: Update


def step_path(directory: str | os.PathLike, step: int) -> Path:
    return Path(directory) / f"{step:06d}.safetensors"


def pack_step(step: int, update: Update) -> bytes:
    """The file of step `step` (from 1): the same update is the same bytes."""
    metadata = {"format": str(_FORMAT), "step": str(step), "info": json.dumps(update.info, sort_keys=True)}
    # One key, as safetensors writes several in random order.
    packed = {"coachhook": json.dumps(metadata, sort_keys=True)}
    return save({name: tensor.contiguous() for name, tensor in update.tensors.items()}, packed)


def write_step(directory: str | os.PathLike, step: int, update: Update) -> None:
    """Store the update of step `step` (from 1)."""
    write_bytes(step_path(directory, step), pack_step(step, update))


def read_step(directory: str | os.PathLike, step: int) -> Update | None:
    """The update of step `step`, or None where it was never stored.

    Raises:
        JournalError: the file is there but damaged.
    """
    path = step_path(directory, step)
    return read_update(path) if path.exists() else None


def read_update(path: str | os.PathLike) -> Update:
    """The update in one file.

    Raises:
        JournalError: it is missing, damaged or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("coachhook", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
    except (SafetensorError, OSError) as error:
        raise JournalError(f"{path}: damaged ({error}); delete it and start again") from None
    if metadata.get("format") != str(_FORMAT):
        raise JournalError(f"{path}: format {metadata.get('format')} is not {_FORMAT}; use the version that wrote it")
    return Update(tensors, json.loads(metadata["info"]))
