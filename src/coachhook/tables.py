"""The scores after the last batch, one row per model, data set and method.

Looks at the setting "default" under one protocol; scores of different protocols are never put together.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from coachhook.figure_data import MORE_SCORES, SCORES, VALID, final
from coachhook.figure_style import SCORE_STYLES, method_order, method_style

ROW = ["model", "dataset", "method"]


def table(frame: pd.DataFrame, protocol: str = "easyedit") -> pd.DataFrame:
    """Final scores (0 to 1), from the rows `figures.collect` returns.

    Columns: model, dataset, method, protocol, edits, seeds; each score's mean over seeds and, as `<score>_sd`,
    its standard deviation (NaN with one seed); then the same of `<score>_not_superseded`, over the requests that
    no later one contradicts. Scores nobody has are left out. Raises StreamResultError for an unknown protocol.
    """
    rows = final(frame[frame["setting"] == "default"], protocol)
    scores = [*SCORES, *MORE_SCORES]
    scores += [score + VALID for score in scores]
    columns = {"edits": ("edits", "max"), "seeds": ("seed", "nunique")}
    for score in scores:
        if score in rows and rows[score].notna().any():
            columns |= {score: (score, "mean"), f"{score}_sd": (score, "std")}
    means = rows.groupby(ROW, as_index=False).agg(**columns)
    means.insert(3, "protocol", protocol)
    order = method_order(means["method"])
    means["rank"] = means["method"].map(order.index)
    means = means.sort_values(["model", "dataset", "rank"], ignore_index=True)
    return means.drop(columns="rank")


def write_markdown(means: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a table as Markdown, in percent, whole or not at all; the best mean of a data set is bold.

    A second table leaves out superseded requests, where that changes any score.
    """
    scores = [score for score in [*SCORES, *MORE_SCORES] if score in means]
    protocol = means["protocol"].iloc[0]
    text = f"Scores after the last batch, protocol `{protocol}`; mean ± standard deviation over seeds.\n\n"
    text += _markdown(means, scores, "")
    if _contradicted(means, scores):
        text += "\nThe same over the requests that no later request contradicts.\n\n"
        text += _markdown(means, scores, VALID)
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _markdown(means: pd.DataFrame, scores: list[str], suffix: str) -> str:
    head = ["model", "data set", "edits", "seeds", "method"]
    lines = [[*head, *(f"{SCORE_STYLES[score].label.lower()} (%)" for score in scores)]]
    lines.append(["---"] * len(head) + ["---:"] * len(scores))
    best = means.groupby(["model", "dataset"])["mean" + suffix].transform("max")
    for row, top in zip(means.to_dict("records"), best, strict=True):
        cells = {score: percent(row[score + suffix], row[f"{score}{suffix}_sd"]) for score in scores}
        if row["mean" + suffix] == top:
            cells["mean"] = f"**{cells['mean']}**"
        run = [row["model"], row["dataset"], str(row["edits"]), str(row["seeds"])]
        lines.append([*run, method_style(row["method"]).label, *cells.values()])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def percent(mean: float, deviation: float) -> str:
    """A score of 0 to 1 in percent, with its standard deviation where there is one."""
    if pd.isna(mean):
        return "–"
    return f"{100 * mean:.1f}" if pd.isna(deviation) else f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def _contradicted(means: pd.DataFrame, scores: list[str]) -> bool:
    """Whether leaving out superseded requests changes any score."""
    if not all(score + VALID in means for score in scores):
        return False
    return not np.allclose(means[scores], means[[score + VALID for score in scores]], equal_nan=True)
