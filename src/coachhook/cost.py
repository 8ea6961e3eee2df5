"""What editing costs, measured in the stream's own job: seconds, state and journal per step, slow-down at the end.

Times differ from run to run; nothing that must be the same bytes is written here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from coachhook.devices import execution_device
from coachhook.editor import Editor
from coachhook.tokens import pad, pad_id
from coachhook.whole_files import write_checked, write_text

_LEAST, _MOST = 5, 20  # pairs of forward passes that are timed
_SECONDS = 5  # after which no more than the least are: of large models each takes long


@dataclass(frozen=True)
class StepCost:
    """What one step cost.

    Attributes:
        step: number of the batch in the stream.
        edits: edits in the model after it.
        seconds: time of `Editor.edit`.
        state_bytes: what answering takes besides the base model, after it.
        journal_bytes: size of the step's file.
    """

    step: int
    edits: int
    seconds: float
    state_bytes: int
    journal_bytes: int


@dataclass(frozen=True)
class ForwardCost:
    """A forward pass with the edits beside one of the base model.

    Attributes:
        forward_slowdown: edited by base.
        forward_ms_base, forward_ms_edited: medians, in milliseconds.
        tokens: real tokens in the pass.
        model_bytes: the base model's parameters, what one checkpoint of it takes.
    """

    forward_slowdown: float
    forward_ms_base: float
    forward_ms_edited: float
    tokens: int
    model_bytes: int


def cost_path(checkpoint: Path, step: int) -> Path:
    return checkpoint / f"{step:06d}.cost.json"


def write_step_cost(checkpoint: Path, cost: StepCost) -> None:
    """Keep a step's cost in the checkpoint: a step is measured once, before any kill."""
    write_checked(cost_path(checkpoint, cost.step), json.dumps(asdict(cost)).encode() + b"\n")


def write_costs(checkpoint: Path, steps: int, forward: ForwardCost, path: Path) -> None:
    """One row per step, then the forward pass."""
    rows = [cost_path(checkpoint, step).read_text() for step in range(1, steps + 1)]
    write_text(path, "".join([*rows, json.dumps(asdict(forward)) + "\n"]))


@torch.no_grad()
def measure_forward(editor: Editor, texts: Sequence[str], model_bytes: int) -> ForwardCost:
    """Time forward passes over one batch, edited and base in turn, so that both meet the same load."""
    device = execution_device(editor.model.get_input_embeddings())
    batch = pad([editor.tokenizer(text)["input_ids"] for text in texts], pad_id(editor.tokenizer), device)

    def seconds() -> float:
        started = time.perf_counter()
        output = editor.model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        output.logits[-1, -1, -1].item()  # waits for the device
        return time.perf_counter() - started

    edited, base, begun = [], [], time.perf_counter()
    while len(base) <= _MOST:  # the first pair warms up
        if len(base) > _LEAST and time.perf_counter() - begun > _SECONDS:
            break
        edited.append(seconds())
        with editor.disabled():
            base.append(seconds())
    before, after = 1000 * median(base[1:]), 1000 * median(edited[1:])
    return ForwardCost(after / before, before, after, int(batch.real.sum()), model_bytes)
