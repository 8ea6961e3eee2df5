"""The figure of how much of a stream contradicts itself: of the requests so far, the share that a later one revokes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from coachhook.contradictions import contradiction_counts
from coachhook.figure_panels import legend, line, panel_grid
from coachhook.figure_style import Style
from coachhook.requests import read_requests
from coachhook.stream_draw import draw_requests

_POINTS = 200  # of a line; more than can be told apart
_FIRST = 20  # requests; a share of fewer is mostly chance
_STYLES = [
    Style("", "#0072B2", "o", "-"),
    Style("", "#D55E00", "s", "--"),
    Style("", "#009E73", "^", "-."),
    Style("", "#CC79A7", "D", ":"),
    Style("", "#000000", "v", "-"),
    Style("", "#E69F00", "P", "--"),
]


def data(request_files: Iterable[str | os.PathLike], dataset: str, seeds: Sequence[int], edits: int) -> pd.DataFrame:
    """One row per seed and number of edits: `superseded` requests among them, and their `share`.

    A stream is drawn as `run_stream` draws it; where there are fewer requests than `edits`, it is all of them.
    """
    requests = [request for path in request_files for request in read_requests(path)]
    edits, rows = min(edits, len(requests)), []
    every = -(-edits // _POINTS)
    for seed in seeds:
        counts = contradiction_counts(draw_requests(requests, edits, seed))
        shown = [row for row in counts if row["edits"] % every == 0 or row["edits"] == edits]
        rows += [{"seed": seed, **row, "share": row["superseded"] / row["edits"], "dataset": dataset} for row in shown]
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> Figure:
    """One line per data set from the first few requests on: mean over seeds, with a band of one standard deviation."""
    frame = frame[frame["edits"] >= min(_FIRST, frame["edits"].max())]
    figure, panels = panel_grid(1, 1, (5.2, 2.9))
    axes = panels[0, 0]
    names = frame["dataset"].unique()
    for number, name in enumerate(names):
        look = _STYLES[number % len(_STYLES)]._replace(label=name)
        line(axes, frame[frame["dataset"] == name], "edits", "share", look)
    axes.set_xlim(0, frame["edits"].max() * 1.02)
    axes.set_ylim(0, max(0.05, frame["share"].max() * 1.1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="requests in the stream", ylabel="share contradicted by a later one")
    legend(figure, axes)
    return figure
