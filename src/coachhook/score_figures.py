"""Figures of scores: over the edits, against hyper-parameters, batch by batch, and the z-scores behind the gate."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from coachhook.figure_data import MORE_SCORES, SCORES, value_order
from coachhook.figure_panels import PARAMETERS, by_dataset, legend, line, panel_grid, score_axis, short
from coachhook.figure_style import SCORE_STYLES, method_order, method_style

_KINDS = {"edit": "edit prompts", "paraphrase": "paraphrases"}
_MAPS_PER_ROW = 6
_FEW_LINES = 6  # lines that a panel of the usual height keeps apart


def _method_grid(frame: pd.DataFrame, x: str, label: str, finish: Callable[[Axes], None]) -> Figure:
    """One row of panels per data set, one panel per score, one line per method."""
    scores = [score for score in [*SCORES, *MORE_SCORES] if frame[score].notna().any()]
    groups, methods = by_dataset(frame), method_order(frame["method"])
    figure, panels = panel_grid(len(groups), len(scores), (2.05, 1.95 if len(methods) <= _FEW_LINES else 2.9))
    low = np.floor(max(0, frame[scores].min().min() - 0.05) * 10) / 10  # one axis for all panels, without the void
    for row, (name, rows) in zip(panels, groups, strict=True):
        for axes, score in zip(row, scores, strict=True):
            for method in methods:
                line(axes, rows[rows["method"] == method], x, score, method_style(method))
            score_axis(axes, low)
            finish(axes)
            axes.set_title(SCORE_STYLES[score].label if axes in panels[0] else "")
            axes.set_xlabel(label if axes in panels[-1] else "")
            if rows[score].isna().all():
                axes.text(0.5, 0.5, "no such probes", ha="center", color="#777777", transform=axes.transAxes)
        row[0].set_ylabel(f"{name}\nscore (0 to 1)" if len(groups) > 1 else "score (0 to 1)")
    legend(figure, panels[0, 0])
    return figure


def hook(frame: pd.DataFrame) -> Figure:
    def finish(axes: Axes) -> None:
        axes.set_xlim(0, frame["edits"].max() * 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))

    return _method_grid(frame, "edits", "edits made", finish)


def sweep(frame: pd.DataFrame, parameter: str, scale: str = "category") -> Figure:
    """Scores against a setting's value: a line per score where there is one method, else a line per method.

    scale: "linear", "log", or "category" for values that are no quantities or lie far apart.
    """
    values = sorted(frame[parameter].unique(), key=value_order)
    places = list(range(len(values))) if scale == "category" else [float(value) for value in values]
    labels = [short(value) for value in values]
    frame = frame.assign(place=frame[parameter].map(dict(zip(values, places, strict=True))))
    chosen = frame.loc[frame["is_default"], "place"].unique()

    def finish(axes: Axes) -> None:
        axes.set_xscale("log" if scale == "log" else "linear")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(places, labels, rotation=45 if sum(map(len, labels)) > 24 else 0)
        for place in chosen:
            axes.axvline(place, color="#777777", linestyle=":", linewidth=1, zorder=0.5)

    if frame["method"].nunique() > 1:
        return _method_grid(frame, "place", PARAMETERS[parameter], finish)
    return _score_panels(frame, PARAMETERS[parameter], finish)


def _score_panels(frame: pd.DataFrame, label: str, finish: Callable[[Axes], None]) -> Figure:
    """One panel per data set, one line per score of the only method."""
    groups = by_dataset(frame)
    figure, panels = panel_grid(1, len(groups), (3.3, 2.1))
    for axes, (name, rows) in zip(panels[0], groups, strict=True):
        for score in [*SCORES, *MORE_SCORES]:
            if frame[score].notna().any():
                line(axes, rows, "place", score, SCORE_STYLES[score])
        score_axis(axes)
        finish(axes)
        axes.set_title(f"{method_style(rows['method'].iloc[0]).label}, {name}")
        axes.set_xlabel(label)
    panels[0, 0].set_ylabel("score (0 to 1)")
    figure.set_figwidth(figure.get_figwidth() + 1.8)
    legend(figure, panels[0, 0], below=False)
    return figure


def zscore(frame: pd.DataFrame) -> Figure:
    """One row of panels per data set and kind of prompt, one panel per layer."""
    looks = {
        "subject": ("edited subject's token", "#0072B2"),
        "other": ("other tokens", "#999999"),
    }
    layers = sorted(frame["layer"].unique())
    groups = [
        (f"{name}\n" if frame["dataset"].nunique() > 1 else "", kind, rows[rows["kind"] == kind])
        for name, rows in by_dataset(frame)
        for kind in _KINDS
        if (rows["kind"] == kind).any()
    ]
    figure, panels = panel_grid(len(groups), len(layers), (2.5, 1.75))
    for row, (name, kind, rows) in zip(panels, groups, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            here = rows[rows["layer"] == layer]
            for role, (label, colour) in looks.items():
                bins = here[here["role"] == role]
                widths = bins["z_high"] - bins["z_low"]
                bar = {"color": colour, "alpha": 0.65, "label": label, "linewidth": 0.4}
                axes.bar(bins["z_low"], bins["share"], widths, align="edge", **bar)
            for alpha in here["alpha"].dropna().unique():
                axes.axvline(alpha, color="#D55E00", linestyle="--", label="threshold α at the end")
            axes.grid(axis="x", visible=False)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.set_title(f"layer {layer}" if axes in panels[0] else "")
            axes.set_xlabel("z-score of ‖ΔW k‖ in its prompt" if axes in panels[-1] else "")
        row[0].set_ylabel(f"{name}{_KINDS[kind]}\nshare of tokens")
    legend(figure, panels[0, 0])
    return figure


def retention(frame: pd.DataFrame) -> Figure:
    """Rows of panels per data set, one heat map per method: batch edited × step evaluated."""
    groups, methods = by_dataset(frame), method_order(frame["method"])
    columns = min(_MAPS_PER_ROW, len(methods))
    rows = -(-len(methods) // columns)
    figure, panels = panel_grid(len(groups) * rows, columns, (2.2, 2.1))
    colours = ScalarMappable(Normalize(0, 1), "cividis")
    for group, (name, here) in enumerate(groups):
        block = panels[group * rows : (group + 1) * rows]
        for axes, method in zip(block.flat, methods, strict=False):
            cells = here[here["method"] == method].pivot(index="batch", columns="step", values="reliability")
            if not cells.empty:
                axes.pcolormesh(_edges(cells.columns), _edges(cells.index), cells, cmap=colours.cmap, norm=colours.norm)
            axes.grid(visible=False)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
            axes.set_title(method_style(method).label if rows > 1 or group == 0 else "")
        for axes in block.flat[len(methods) :]:
            axes.set_axis_off()
        for axes in block[:, 0]:
            axes.set_ylabel(f"{name}\nbatch edited" if len(groups) > 1 else "batch edited")
        for axes in block.flat[len(methods) - columns : len(methods)] if rows > 1 or group == len(groups) - 1 else ():
            axes.set_xlabel("batches applied")
            axes.tick_params(labelbottom=True)
    figure.colorbar(
        colours, ax=panels, label="reliability of the batch (0 to 1)", pad=0.01, fraction=0.05, aspect=20 * len(panels)
    )
    return figure


def _edges(values: pd.Index) -> np.ndarray:
    """Cell borders around sorted steps or batches; evaluations far apart get wide cells that end at them."""
    steps = values.to_numpy(dtype=float)
    return np.concatenate([[steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)], steps]) + 0.5
