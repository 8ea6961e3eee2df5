"""What editing costs, gathered from the streams' `cost.jsonl`: time, memory, disk and slow-down, as measured.

That file (module `cost`) holds a row per step and a last row about the edited model.
"""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from coachhook.figure_data import StreamResultError, read_rows, runs

_SHOWN_AT = (1, 10, 100, 1000)  # edits, besides the first and the last step
_FIRST = ["method", "seed", "edits", "measured", "seconds_per_edit", "state_bytes", "journal_bytes", "checkpoint_bytes"]
_AT_END = ["state_bytes_per_100_edits", "forward_slowdown", "forward_ms_base", "forward_ms_edited", "tokens"]


def cost(stream_dirs: Iterable[str | os.PathLike]) -> pd.DataFrame:
    """What each stream of the setting "default" costs at 1, 10, 100 and 1,000 edits, at its first and its last step.

    `measured` is False where no step of the stream ended at that number of edits: bytes are then on the line
    through its first and its last step (no less than one edit adds), and there is no time. `seconds_per_edit` is
    the mean over all edits so far; `state_bytes` what answering takes besides the base model, `journal_bytes` what
    all steps so far take on disk; `checkpoint_bytes`, no measurement, is the model's size times the steps: a
    checkpoint of the whole model after each. In a stream's last row: the slow-down of a forward pass, and
    `state_bytes_per_100_edits`, the growth from the first step to the last (NaN with one step).
    """
    rows = []
    for directory, run in runs(stream_dirs):
        if run["setting"] == "default":
            rows += [run | row for row in _cost(list(read_rows(directory / "cost.jsonl")))]
    if not rows:
        raise StreamResultError('no stream has the setting "default"')
    columns = [*_FIRST, *_AT_END, "step", "dataset", "model"]
    return pd.DataFrame(rows)[columns].sort_values(["dataset", "model", "method", "seed", "edits"], ignore_index=True)


def _cost(rows: list[dict]) -> Iterator[dict]:
    """One stream's rows."""
    *steps, model = rows
    edits, grown = (steps[-1][name] - steps[0][name] for name in ("edits", "state_bytes"))
    model["state_bytes_per_100_edits"] = 100 * grown / edits if edits else np.nan
    seconds = journal = 0
    for step in steps:
        seconds, journal = seconds + step["seconds"], journal + step["journal_bytes"]
        if step["edits"] in _SHOWN_AT or step in (steps[0], steps[-1]):
            sums = {"seconds_per_edit": seconds / step["edits"], "journal_bytes": journal}
            sums["checkpoint_bytes"] = model["model_bytes"] * step["step"]
            at_end = {name: model[name] if step is steps[-1] else np.nan for name in _AT_END}
            yield {"measured": True} | step | sums | at_end
    if edits:
        yield from _estimated(steps, journal, model["model_bytes"])


def _estimated(steps: list[dict], journal: int, model_bytes: int) -> Iterator[dict]:
    """Rows at the numbers of edits that no step ended at; `journal`: bytes of all steps."""
    first, last = steps[0], steps[-1]
    grown = (last["state_bytes"] - first["state_bytes"]) / (last["edits"] - first["edits"])
    for edits in set(_SHOWN_AT) - {step["edits"] for step in steps}:
        step = -(-edits // first["edits"])  # a stream's first step has a full batch
        state = first["state_bytes"] + grown * (edits - first["edits"])
        row = {"step": step, "edits": edits, "measured": False, "seconds_per_edit": np.nan}
        row |= {"state_bytes": round(max(state, grown)), "journal_bytes": round(journal * edits / last["edits"])}
        yield row | {"checkpoint_bytes": model_bytes * step} | dict.fromkeys(_AT_END, np.nan)
