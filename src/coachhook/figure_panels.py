"""Parts that several figures are put together from: panels, axes, lines, legends."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from coachhook.figure_style import Style

PARAMETERS = {
    "covariance_weight": "covariance weight λ",
    "layers": "hook layers",
    "alpha": "initial threshold α (z-score)",
    "batch_size": "requests per batch",
}


def by_dataset(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each model and data set, with a short name that tells them apart."""
    several = frame["model"].nunique() > 1
    groups = frame.groupby(["dataset", "model"], sort=True)
    return [(f"{dataset}, {model}" if several else dataset, rows) for (dataset, model), rows in groups]


def panel_grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Panels with common axes; size: inches of each. Five of 2.05 side by side stay readable in a README."""
    figure = Figure(figsize=(columns * size[0] + 0.45, rows * size[1] + 0.65), layout="constrained")
    return figure, figure.subplots(rows, columns, sharey="row", sharex=True, squeeze=False)


def score_axis(axes: Axes, low: float = 0.0) -> None:
    """Scores from `low` (a multiple of 0.1) to 1."""
    margin = 0.03 * (1 - low)
    axes.set_ylim(low - margin, 1 + margin)
    axes.yaxis.set_major_locator(MultipleLocator(0.2 if low < 0.4 else 0.1))
    axes.grid(axis="x", visible=False)


def legend(figure: Figure, axes: Axes, below: bool = True) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() / 1.9))  # inches that the longest label takes
    place = {"loc": "outside lower center", "ncols": columns} if below else {"loc": "outside right center"}
    figure.legend(handles, labels, frameon=False, columnspacing=1.4, **place)


def line(axes: Axes, rows: pd.DataFrame, x: str, score: str, look: Style) -> None:
    """A score's mean over seeds, and where there are several seeds a band of one standard deviation."""
    over_seeds = rows.groupby(x)[score].agg(["mean", "std"]).dropna(subset="mean")
    positions, mean = over_seeds.index.to_numpy(), over_seeds["mean"].to_numpy()
    every = max(1, round(len(mean) / 8))  # more markers than this hide the line
    looks = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
    axes.plot(positions, mean, markevery=every, label=look.label, **looks)
    spread = over_seeds["std"].fillna(0).to_numpy()
    if spread.any():
        axes.fill_between(positions, mean - spread, mean + spread, color=look.colour, alpha=0.18, linewidth=0)


def short(value: object) -> str:
    """A value as a tick label: 15000 is 15k."""
    try:
        number = float(str(value))
    except ValueError:
        return str(value).replace("-", ",")
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"
