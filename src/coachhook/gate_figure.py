"""The figure of the gates, from what `gate_comparison` measured: trade-off, retrieval, length, unseen text, sketch."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coachhook.figure_data import StreamResultError, runs
from coachhook.figure_panels import line
from coachhook.figure_style import Style

GATES = {
    "leverage": Style("leverage (ours)", "#56B4E9", "h"),
    "ratio": Style("‖ΔW k‖ / ‖k‖, same calibration", "#CC79A7", "X", "--"),
    "paper": Style("z-score (paper)", "#0072B2", "o", "-."),
    "off": Style("no gate", "#E69F00", "s", ":"),
}


def data(stream_dirs: Iterable[str | os.PathLike]) -> pd.DataFrame:
    """The rows of all streams' `gates.csv`, behind the columns that say which stream it was."""
    parts = []
    for directory, run in runs(stream_dirs):
        path = directory / "gates.csv"
        if not path.exists():
            raise StreamResultError(f"{path} is missing; compare the gates of this stream")
        parts.append(pd.read_csv(path).assign(**run))
    frame = pd.concat(parts, ignore_index=True)
    return frame[[*run, *(name for name in frame if name not in run)]]


def draw(frame: pd.DataFrame) -> Figure:
    """Columns are models; rows: generality against locality, what retrieval is worth, where gates open behind other
    text, how often on text that no calibration has seen, how often a sketch decides unlike the exact form."""
    models = list(dict.fromkeys(frame["model"]))
    figure = Figure(figsize=(2.6 * len(models) + 0.5, 10.6), layout="constrained")
    panels = figure.subplots(5, len(models), squeeze=False)
    rows = (_tradeoff, _retrieval, _lengths, _unseen, _sketches)
    for column, model in enumerate(models):
        for axes, row in zip(panels[:, column], rows, strict=True):
            row(axes, frame[frame["model"] == model], first=column == 0)
        panels[0, column].set_title(model)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=min(2, len(models)))
    return figure


def _tradeoff(axes: Axes, frame: pd.DataFrame, first: bool) -> None:
    rows = frame[frame["kind"] == "tradeoff"]
    for name, look in GATES.items():
        curve = rows[rows["gate"] == f"{name}, edited fraction"]
        means = curve.groupby("value")[["locality", "generality"]].mean()
        points = rows[rows["gate"] == name][["locality", "generality"]]
        if len(means):
            axes.plot(means["locality"], means["generality"], look.line, color=look.colour, marker=look.marker, ms=3)
        if len(points):
            place = points.mean()
            axes.errorbar(
                place["locality"],
                place["generality"],
                xerr=_spread(points["locality"]),
                yerr=_spread(points["generality"]),
                color=look.colour,
                marker=look.marker,
                markersize=8,
                markeredgecolor="black",
                linestyle="none",
            )
        axes.plot([], [], look.line, color=look.colour, marker=look.marker, label=look.label)
    axes.set_xlabel("locality")
    _label(axes, "generality", first)


def _retrieval(axes: Axes, frame: pd.DataFrame, first: bool) -> None:
    rows, look = frame[frame["kind"] == "tradeoff"], GATES["leverage"]
    for score, style in (("generality", "-"), ("locality", ":")):
        line(axes, rows[rows["gate"] == "leverage, sharpness"], "value", score, look._replace(line=style))
        axes.axhline(rows.loc[rows["gate"] == "leverage, own key", score].mean(), color="#555555", linestyle=style)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("sharpness of retrieval\n(grey: own key)")
    _label(axes, "generality (—),\nlocality (···)", first)


def _lengths(axes: Axes, frame: pd.DataFrame, first: bool) -> None:
    rows = frame[frame["kind"] == "length"]
    for name, look in GATES.items():
        for share, style in (("subjects", "-"), ("others", ":")):
            line(axes, rows[rows["gate"] == name], "value", share, look._replace(line=style))
    recalled = rows.groupby("value")["recalled"].mean()
    axes.plot(recalled.index, recalled, color="#555555", linewidth=0.8)
    axes.set_xlabel("tokens of other text in front\n(grey: base model's own recall)")
    axes.set_ylim(-0.03, 1.03)
    _label(axes, "share swapped: subjects (—),\nall other tokens (···)", first)


def _unseen(axes: Axes, frame: pd.DataFrame, first: bool) -> None:
    rows = frame[frame["kind"] == "unseen"]
    rows = rows.assign(chosen=100 * rows["value"], edited=100 * rows["rate"], base=100 * rows["rate_base"])
    for name, look in GATES.items():
        for rate, style in (("edited", "-"), ("base", ":")):
            line(axes, rows[rows["gate"] == name], "chosen", rate, look._replace(line=style))
    ends = [0, rows["chosen"].max()]
    axes.plot(ends, ends, color="#555555", linewidth=0.8)
    axes.fill_between(ends, [end / 1.5 for end in ends], [end * 1.5 for end in ends], color="#EEEEEE", linewidth=0)
    axes.set_xlabel("chosen false-positive rate (%)\n(···: base model's keys)")
    _label(axes, "measured on\nunseen text (%)", first)


def _sketches(axes: Axes, frame: pd.DataFrame, first: bool) -> None:
    rows = frame[frame["kind"] == "sketch"]
    rows = rows.assign(differs=100 * (1 - rows["agreement"]))
    line(axes, rows, "value", "differs", GATES["leverage"])
    axes.axhline(0.1, color="#555555", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("rows of the sketch")
    _label(axes, "decisions unlike\nthe exact form's (%)", first)


def _label(axes: Axes, text: str, first: bool) -> None:
    axes.grid(axis="x", visible=False)
    if first:
        axes.set_ylabel(text)


def _spread(values: pd.Series) -> float:
    return 0.0 if len(values) < 2 else float(values.std())
