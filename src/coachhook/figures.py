"""The study's figures: `data` gathers a figure's numbers, `draw` draws it from nothing but their CSV file.

A further figure is one data function, one draw function and one line in `_FIGURES`.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from coachhook import (
    comparison_figures,
    contradiction_figure,
    cost_data,
    cost_figure,
    figure_data,
    gate_figure,
    score_figures,
)
from coachhook.figure_data import StreamResultError, collect
from coachhook.figure_style import save, style
from coachhook.whole_files import whole_file

__all__ = ["StreamResultError", "collect", "data", "draw", "names", "write_csv"]


def names() -> list[str]:
    """The names of all figures."""
    return list(_FIGURES)


def data(name: str, stream_dirs: Iterable[str | os.PathLike], **options) -> pd.DataFrame:
    """The numbers of a figure; options go to its data function (`protocol`, and `defaults` of a sweep).

    `contradictions` is about requests, not results: in place of stream directories it takes request files.

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
    with whole_file(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def _figure(name: str):
    if name not in _FIGURES:
        raise ValueError(f"{name!r} is no figure; use one of {', '.join(_FIGURES)}")
    return _FIGURES[name]


def _sweep(parameter: str, scale: str = "category"):
    data = partial(figure_data.sweep, parameters=(parameter,))
    return data, partial(score_figures.sweep, parameter=parameter, scale=scale)


_FIGURES: dict[str, tuple[Callable[..., pd.DataFrame], Callable[[pd.DataFrame], Figure]]] = {
    "hook": (figure_data.hook, score_figures.hook),
    "lambda": _sweep("covariance_weight", scale="log"),
    "layers": _sweep("layers"),
    "alpha": _sweep("alpha", scale="linear"),
    "batch_size": _sweep("batch_size"),
    "zscore": (figure_data.zscore, score_figures.zscore),
    "retention": (figure_data.retention, score_figures.retention),
    "frontier": (figure_data.frontier, comparison_figures.frontier),
    "contradictions": (contradiction_figure.data, contradiction_figure.draw),
    "cost": (cost_data.cost, cost_figure.cost),
    "gate": (gate_figure.data, gate_figure.draw),
    "sensitivity": (
        partial(figure_data.sweep, parameters=("covariance_weight", "alpha")),
        comparison_figures.sensitivity,
    ),
}
