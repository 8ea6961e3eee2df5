"""The search for hyper-parameters: each trial's scores, and the values of the best."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from coachhook.errors import CoachHookError
from coachhook.figure_data import SCORES, collect, final
from coachhook.study import Trial, setting_name
from coachhook.whole_files import write_text

_HEAD = "# Written by `snakemake tune`: of each method's trials, the values with the best harmonic mean.\n"


class TuningError(CoachHookError, ValueError):
    """A search from which nothing can be chosen."""


def search(trials: Sequence[Trial], streams: str | os.PathLike, protocol: str) -> pd.DataFrame:
    """A row per trial: model, method, setting, the scores after the last batch (means over its streams), chosen.

    The best harmonic mean of reliability, generality and locality is chosen, of equal ones the first: by their plain
    mean a trial that edits nothing, and so is perfectly local, beats many that edit.
    Raises StreamResultError where streams are missing, TuningError where no trial of a method has a score.
    """
    rows = []
    for trial in trials:
        scores = final(collect([Path(streams, path) for path in trial.paths], valid=False), protocol)
        means = {score: scores[score].mean() for score in (*SCORES, "mean")}
        means["harmonic_mean"] = _harmonic_mean([means[score] for score in SCORES])
        rows.append({"model": trial.model, "method": trial.method, "setting": setting_name(trial.values), **means})
    frame = pd.DataFrame(rows).assign(chosen=False)
    for (model, method), of_method in frame.groupby(["model", "method"]):
        if of_method["harmonic_mean"].isna().all():
            raise TuningError(f"tuning: no trial of {method} on {model} has a score; see its streams")
        frame.loc[of_method["harmonic_mean"].idxmax(), "chosen"] = True
    return frame


def _harmonic_mean(values: Sequence[float]) -> float:
    return 0.0 if 0 in values else len(values) / sum(1 / value for value in values)


def choose(trials: Sequence[Trial], found: pd.DataFrame, model: str) -> dict[str, dict[str, Any]]:
    """Per method of a model the values of the chosen trial; `found` is what `search` made of the same trials."""
    return {
        trial.method: trial.values
        for trial, chosen in zip(trials, found["chosen"], strict=True)
        if chosen and trial.model == model
    }


def write_chosen(chosen: dict[str, dict[str, Any]], path: str | os.PathLike) -> None:
    """Write what `choose` returns as YAML, a line per method."""
    options = {"sort_keys": False, "default_flow_style": True, "width": float("inf")}
    lines = [f"{method}: {yaml.safe_dump(values, **options)}" for method, values in chosen.items()]
    write_text(path, _HEAD + "".join(lines))
