"""The study's figures: `data` gathers a figure's numbers, `draw` draws it from nothing but their CSV file.

A further figure is one data function, one draw function and one line in `_FIGURES`.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator, NullLocator

from coachhook import figure_data
from coachhook.figure_data import MORE_SCORES, SCORES, StreamResultError, collect
from coachhook.figure_style import SCORE_STYLES, Style, method_order, method_style, save, style

__all__ = ["StreamResultError", "collect", "data", "draw", "names", "write_csv"]

_PANEL = (2.05, 1.95)  # inches; five panels side by side stay readable at the width of a README
_LABELS = {
    "covariance_weight": "covariance weight λ",
    "layers": "hook layers",
    "alpha": "initial threshold α (z-score)",
    "batch_size": "requests per batch",
}
_KINDS = {"edit": "edit prompts", "paraphrase": "paraphrases"}


def names() -> list[str]:
    """The names of all figures."""
    return list(_FIGURES)


def data(name: str, stream_dirs: Iterable[str | os.PathLike], **options) -> pd.DataFrame:
    """The numbers of a figure; options go to its function in `figure_data`.

    Raises StreamResultError where the streams lack what the figure shows, ValueError for an unknown name.
    """
    return _figure(name)[0](stream_dirs, **options)


def draw(name: str, csv: str | os.PathLike, pdf: str | os.PathLike, png: str | os.PathLike) -> None:
    """Draw a figure from its CSV file as PDF and PNG; the same CSV gives the same bytes."""
    drawing = _figure(name)[1]
    with style():
        save(drawing(pd.read_csv(csv, dtype={"layers": str})), pdf, png)


def write_csv(frame: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write numbers as CSV (six significant digits, the same on every system), whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _figure(name: str):
    if name not in _FIGURES:
        raise ValueError(f"{name!r} is no figure; use one of {', '.join(_FIGURES)}")
    return _FIGURES[name]


def _groups(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each model and data set, with a short name that tells them apart."""
    several = frame["model"].nunique() > 1
    groups = frame.groupby(["dataset", "model"], sort=True)
    return [(f"{dataset}, {model}" if several else dataset, rows) for (dataset, model), rows in groups]


def _panels(rows: int, columns: int, size: tuple[float, float] = _PANEL) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(columns * size[0] + 0.45, rows * size[1] + 0.65), layout="constrained")
    return figure, figure.subplots(rows, columns, sharey="row", sharex=True, squeeze=False)


def _score_axis(axes: Axes, low: float = 0.0) -> None:
    """Scores from `low` (a multiple of 0.1) to 1."""
    margin = 0.03 * (1 - low)
    axes.set_ylim(low - margin, 1 + margin)
    axes.yaxis.set_major_locator(MultipleLocator(0.2 if low < 0.4 else 0.1))
    axes.grid(axis="x", visible=False)


def _legend(figure: Figure, axes: Axes, below: bool = True) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() / 1.9))  # inches that the longest label takes
    place = {"loc": "outside lower center", "ncols": columns} if below else {"loc": "outside right center"}
    figure.legend(handles, labels, frameon=False, columnspacing=1.4, **place)


def _line(axes: Axes, rows: pd.DataFrame, x: str, score: str, look: Style) -> None:
    """A score's mean over seeds, and where there are several seeds a band of one standard deviation."""
    over_seeds = rows.groupby(x)[score].agg(["mean", "std"]).dropna(subset="mean")
    positions, mean = over_seeds.index.to_numpy(), over_seeds["mean"].to_numpy()
    every = max(1, round(len(mean) / 8))  # more markers than this hide the line
    looks = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
    axes.plot(positions, mean, markevery=every, label=look.label, **looks)
    spread = over_seeds["std"].fillna(0).to_numpy()
    if spread.any():
        axes.fill_between(positions, mean - spread, mean + spread, color=look.colour, alpha=0.18, linewidth=0)


def _method_grid(frame: pd.DataFrame, x: str, label: str, finish: Callable[[Axes], None]) -> Figure:
    """One row of panels per data set, one panel per score, one line per method."""
    scores = [score for score in [*SCORES, *MORE_SCORES] if frame[score].notna().any()]
    groups, methods = _groups(frame), method_order(frame["method"])
    figure, panels = _panels(len(groups), len(scores))
    low = np.floor(max(0, frame[scores].min().min() - 0.05) * 10) / 10  # one axis for all panels, without the void
    for row, (name, rows) in zip(panels, groups, strict=True):
        for axes, score in zip(row, scores, strict=True):
            for method in methods:
                _line(axes, rows[rows["method"] == method], x, score, method_style(method))
            _score_axis(axes, low)
            finish(axes)
            axes.set_title(SCORE_STYLES[score].label if axes in panels[0] else "")
            axes.set_xlabel(label if axes in panels[-1] else "")
            if rows[score].isna().all():
                axes.text(0.5, 0.5, "no such probes", ha="center", color="#777777", transform=axes.transAxes)
        row[0].set_ylabel(f"{name}\nscore (0 to 1)" if len(groups) > 1 else "score (0 to 1)")
    _legend(figure, panels[0, 0])
    return figure


def _draw_hook(frame: pd.DataFrame) -> Figure:
    def finish(axes: Axes) -> None:
        axes.set_xlim(0, frame["edits"].max() * 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))

    return _method_grid(frame, "edits", "edits made", finish)


def _draw_sweep(frame: pd.DataFrame, parameter: str, scale: str = "category") -> Figure:
    """Scores against a setting's value: a line per score where there is one method, else a line per method.

    scale: "linear", "log", or "category" for values that are no quantities or lie far apart.
    """
    values = sorted(frame[parameter].unique(), key=figure_data.value_order)
    places = list(range(len(values))) if scale == "category" else [float(value) for value in values]
    labels = [_short(value) for value in values]
    frame = frame.assign(place=frame[parameter].map(dict(zip(values, places, strict=True))))
    chosen = frame.loc[frame["is_default"], "place"].unique()

    def finish(axes: Axes) -> None:
        axes.set_xscale("log" if scale == "log" else "linear")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(places, labels, rotation=45 if sum(map(len, labels)) > 24 else 0)
        for place in chosen:
            axes.axvline(place, color="#777777", linestyle=":", linewidth=1, zorder=0.5)

    if frame["method"].nunique() > 1:
        return _method_grid(frame, "place", _LABELS[parameter], finish)
    return _score_panels(frame, _LABELS[parameter], finish)


def _score_panels(frame: pd.DataFrame, label: str, finish: Callable[[Axes], None]) -> Figure:
    """One panel per data set, one line per score of the only method."""
    groups = _groups(frame)
    figure, panels = _panels(1, len(groups), (3.3, 2.1))
    for axes, (name, rows) in zip(panels[0], groups, strict=True):
        for score in [*SCORES, *MORE_SCORES]:
            if frame[score].notna().any():
                _line(axes, rows, "place", score, SCORE_STYLES[score])
        _score_axis(axes)
        finish(axes)
        axes.set_title(f"{method_style(rows['method'].iloc[0]).label}, {name}")
        axes.set_xlabel(label)
    panels[0, 0].set_ylabel("score (0 to 1)")
    figure.set_figwidth(figure.get_figwidth() + 1.8)
    _legend(figure, panels[0, 0], below=False)
    return figure


def _short(value: object) -> str:
    """A value as a tick label: 15000 is 15k."""
    try:
        number = float(str(value))
    except ValueError:
        return str(value).replace("-", ",")
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"


def _draw_zscore(frame: pd.DataFrame) -> Figure:
    """One row of panels per data set and kind of prompt, one panel per layer."""
    looks = {
        "subject": ("edited subject's token", "#0072B2"),
        "other": ("other tokens", "#999999"),
    }
    layers = sorted(frame["layer"].unique())
    groups = [
        (f"{name}\n" if frame["dataset"].nunique() > 1 else "", kind, rows[rows["kind"] == kind])
        for name, rows in _groups(frame)
        for kind in _KINDS
        if (rows["kind"] == kind).any()
    ]
    figure, panels = _panels(len(groups), len(layers), (2.5, 1.75))
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
    _legend(figure, panels[0, 0])
    return figure


def _draw_retention(frame: pd.DataFrame) -> Figure:
    """One row of panels per data set, one heat map per method: batch edited × step evaluated."""
    groups, methods = _groups(frame), method_order(frame["method"])
    figure, panels = _panels(len(groups), len(methods), (2.2, 2.1))
    colours = ScalarMappable(Normalize(0, 1), "cividis")
    for row, (name, rows) in zip(panels, groups, strict=True):
        for axes, method in zip(row, methods, strict=True):
            cells = rows[rows["method"] == method].pivot(index="batch", columns="step", values="reliability")
            if not cells.empty:
                axes.pcolormesh(_edges(cells.columns), _edges(cells.index), cells, cmap=colours.cmap, norm=colours.norm)
            axes.grid(visible=False)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
            axes.set_title(method_style(method).label if axes in panels[0] else "")
            axes.set_xlabel("batches applied" if axes in panels[-1] else "")
        row[0].set_ylabel(f"{name}\nbatch edited" if len(groups) > 1 else "batch edited")
    figure.colorbar(colours, ax=panels, label="reliability of the batch (0 to 1)", pad=0.01, fraction=0.05)
    return figure


def _edges(values: pd.Index) -> np.ndarray:
    """Cell borders around sorted steps or batches; evaluations far apart get wide cells that end at them."""
    steps = values.to_numpy(dtype=float)
    return np.concatenate([[steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)], steps]) + 0.5


_FIGURES: dict[str, tuple[Callable[..., pd.DataFrame], Callable[[pd.DataFrame], Figure]]] = {
    "hook": (figure_data.hook, _draw_hook),
    "lambda": (
        partial(figure_data.sweep, parameter="covariance_weight"),
        partial(_draw_sweep, parameter="covariance_weight", scale="log"),
    ),
    "layers": (partial(figure_data.sweep, parameter="layers"), partial(_draw_sweep, parameter="layers")),
    "alpha": (
        partial(figure_data.sweep, parameter="alpha"),
        partial(_draw_sweep, parameter="alpha", scale="linear"),
    ),
    "batch_size": (
        partial(figure_data.sweep, parameter="batch_size"),
        partial(_draw_sweep, parameter="batch_size"),
    ),
    "zscore": (figure_data.zscore, _draw_zscore),
    "retention": (figure_data.retention, _draw_retention),
}
