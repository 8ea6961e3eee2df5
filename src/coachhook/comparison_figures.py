"""Figures that compare at one glance: generality against locality of all methods, λ against α."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from coachhook.figure_data import value_order
from coachhook.figure_panels import PARAMETERS, by_dataset, panel_grid, short
from coachhook.figure_style import method_order, method_style
from coachhook.label_placement import label_marks

_AXES = ["locality", "generality"]
_NAME_WIDTH = 14  # characters; longer names are broken


def frontier(frame: pd.DataFrame) -> Figure:
    """One panel per data set, one mark per method: mean over seeds, bars of one standard deviation."""
    groups = by_dataset(frame)
    columns = min(2, len(groups))
    figure, panels = panel_grid(-(-len(groups) // columns), columns, (4.4, 4.0))
    for axes in panels.flat[len(groups) :]:
        axes.remove()
    statistics = [_over_seeds(rows) for _, rows in groups]
    limits = _limits(statistics)
    for axes, (name, rows) in zip(panels.flat, groups, strict=False):
        axes.set(title=f"{name}, after {rows['edits'].max()} edits")
        axes.set(xlabel="locality (0 to 1)", ylabel="generality (0 to 1)" if axes in panels[:, 0] else "")
        for axis, ends in ((axes.xaxis, limits[:, 0]), (axes.yaxis, limits[:, 1])):
            places = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(*ends)
            axis.set_ticks(places[(places >= 0) & (places < 1.001)])  # there is room beyond, but no score
        axes.set(xlim=limits[:, 0], ylim=limits[:, 1])
        axes.tick_params(labelbottom=True)
    for axes, (methods, marks, bars) in zip(panels.flat, statistics, strict=False):
        for method, (x, y), (x_bar, y_bar) in zip(methods, marks, bars, strict=True):
            look = method_style(method)
            line = {"color": look.colour, "markersize": 6.5, "elinewidth": 0.9, "zorder": 3}
            axes.errorbar(x, y, y_bar or None, x_bar or None, marker=look.marker, linestyle="none", **line)
        looks = [method_style(method) for method in methods]
        names = [textwrap.fill(look.label, _NAME_WIDTH) for look in looks]
        label_marks(axes, marks, bars, names, [look.colour for look in looks])
    return figure


def _over_seeds(rows: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Methods that have both scores, and of each (n, 2) the means and the standard deviations, 0 with one seed."""
    scores = rows.groupby("method")[_AXES]
    means = scores.mean().reindex(method_order(rows["method"])).dropna()
    return means.index.tolist(), means.to_numpy(), scores.std().fillna(0).reindex(means.index).to_numpy()


def _limits(statistics: list[tuple[list[str], np.ndarray, np.ndarray]]) -> np.ndarray:
    """Lower and upper ends of both axes, (2, 2), the same in all panels: what is drawn and room for its labels."""
    low = np.min([(marks - bars).min(axis=0) for _, marks, bars in statistics], axis=0)
    high = np.max([(marks + bars).max(axis=0) for _, marks, bars in statistics], axis=0)
    extent = np.maximum(high - low, 0.05)
    return np.stack([low - 0.12 * extent, high + [0.25, 0.12] * extent])  # names stand to the right as a rule


def sensitivity(frame: pd.DataFrame) -> Figure:
    """A heat map per model (data set, method): α × λ, coloured by the mean of the scores; a frame marks the default."""
    groups = list(frame.groupby(["model", "dataset", "method"], sort=True))
    figure = Figure(figsize=(0.9 + 3.0 * len(groups), 2.9), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    cells = [rows.groupby(["alpha", "covariance_weight"])[["mean", "is_default"]].mean() for _, rows in groups]
    means = pd.concat(cells)["mean"]
    colours = ScalarMappable(Normalize(means.min(), means.max()), "cividis")
    differ = [frame[name].nunique() > 1 for name in ("model", "dataset", "method")]
    for axes, (run, _), here in zip(panels, groups, cells, strict=True):
        _heat_map(axes, here, colours)
        names = [run[0], run[1], method_style(run[2]).label]
        title = [name for name, several in zip(names, differ, strict=True) if several] or names
        axes.set(title=", ".join(title), xlabel=PARAMETERS["covariance_weight"])
    panels[0].set_ylabel(PARAMETERS["alpha"])
    edits = frame["edits"].max()
    figure.colorbar(colours, ax=panels, label=f"mean score (0 to 1)\nafter {edits} edits", pad=0.02)
    return figure


def _heat_map(axes: Axes, cells: pd.DataFrame, colours: ScalarMappable) -> None:
    """Cells (by α and λ) side by side, whatever lies between the values, each with its number."""
    rows, columns = (sorted(cells.index.unique(name), key=value_order) for name in cells.index.names)
    for (alpha, weight), cell in cells.iterrows():
        x, y = columns.index(weight), rows.index(alpha)
        colour = colours.to_rgba(cell["mean"])
        dark = np.dot(colour[:3], [0.299, 0.587, 0.114]) < 0.5
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, linewidth=0))
        text = {"ha": "center", "va": "center", "color": "white" if dark else "black", "fontsize": 8}
        axes.text(x, y, f"{cell['mean']:.3f}", **text)
        if cell["is_default"]:
            axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, color=text["color"], linewidth=1.5))
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5))
    axes.set_xticks(range(len(columns)), [short(value) for value in columns])
    axes.set_yticks(range(len(rows)), [short(value) for value in rows])
    axes.grid(visible=False)
