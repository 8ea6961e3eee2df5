"""The scores at the end of the streams: per seed, over seeds, and which is the best.

There is one table per round and protocol, and nothing else is put together. `table_formats` writes them.
"""

import pandas as pd

from coachhook.figure_data import FURTHER_SCORES, MORE_SCORES, SCORES, VALID, StreamResultError, final, side_effects
from coachhook.figure_style import method_order

ROW = ["model", "dataset", "method"]
SHOWN = [*SCORES, "mean"]
ROUNDS = {"consecutive": "default", "single_round": "round=single"}  # what stands in a stream's path as its setting


def per_seed(frame: pd.DataFrame, protocol: str = "easyedit", kind: str = "consecutive") -> pd.DataFrame:
    """Final scores (0 to 1) of each stream of a round, from the rows `figures.collect` returns.

    Columns: dataset, method, seed, reliability, generality, locality, mean, further scores that somebody has
    (`<score>_not_superseded`: over the requests that no later one contradicts), fluency and general ability where they
    were measured (as they are, not 0 to 1), edits, model, protocol.
    Streams with settings of their own are left out. kind: a key of `ROUNDS`. Raises StreamResultError where no
    stream is of this round and protocol.
    """
    rows = frame[frame["setting"] == ROUNDS[kind]]
    if rows.empty:
        raise StreamResultError(f'no stream has the setting "{ROUNDS[kind]}", so there is no table {kind!r}')
    rows = final(rows, protocol)
    wanted = [
        score + suffix for suffix in ("", VALID) for score in dict.fromkeys([*SHOWN, *MORE_SCORES, *FURTHER_SCORES])
    ]
    wanted += side_effects(rows)
    scores = [score for score in wanted if score in SCORES or (score in rows and rows[score].notna().any())]
    order = method_order(rows["method"])
    rows = rows.assign(rank=rows["method"].map(order.index)).sort_values(["model", "dataset", "rank", "seed"])
    return rows[["dataset", "method", "seed", *scores, "edits", "model", "protocol"]].reset_index(drop=True)


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """What `per_seed` returns, over seeds: a row per model, data set and method.

    Columns: model, dataset, method, protocol, edits, seeds; each score's mean over seeds and, as `<score>_sd`,
    its standard deviation (NaN with one seed).
    """
    scores = rows.columns[rows.columns.get_loc("seed") + 1 : rows.columns.get_loc("edits")]
    columns = {"edits": ("edits", "max"), "seeds": ("seed", "nunique")}
    for score in scores:
        columns |= {score: (score, "mean"), f"{score}_sd": (score, "std")}
    means = rows.groupby(ROW, as_index=False, sort=False).agg(**columns)
    means.insert(3, "protocol", rows["protocol"].iloc[0])
    return means


def shown(score: float) -> float:
    """A score of 0 to 1 as it is shown: percent, one decimal. What is shown alike is nowhere called different."""
    return round(100 * score, 1)


def percent(mean: float, deviation: float) -> str:
    """A score of 0 to 1 in percent, with its standard deviation where there is one."""
    if pd.isna(mean):
        return "–"
    return f"{shown(mean):.1f}" if pd.isna(deviation) else f"{shown(mean):.1f} ± {shown(deviation):.1f}"
