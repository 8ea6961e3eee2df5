"""What editing costs, drawn: a row of panels with a line per method, and one with memory and disk over the edits."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

from coachhook.figure_panels import short
from coachhook.figure_style import Style, method_order, method_style
from coachhook.label_placement import spread

_COPIES = Style("model copies (size × batches)", "#000000", "", "--")
_LABEL = {"fontsize": 7.5, "color": "#222222", "va": "center", "linespacing": 1.1, "annotation_clip": False}
_LEADER = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.6, "shrinkA": 2, "shrinkB": 3, "relpos": (0, 0.5)}
_WIDTH = 10.2  # inches
_LOWER = 3.0  # inches


def cost(frame: pd.DataFrame) -> Figure:
    """Per model a block of panels. Marks are means over streams, whiskers go from the lowest stream to the highest."""
    models = frame.groupby("model", sort=True)
    upper = 0.17 * frame["method"].nunique() + 1.0
    figure = Figure(figsize=(_WIDTH, len(models) * (upper + _LOWER + 0.2)), layout="constrained")
    blocks = figure.subfigures(len(models), 1, squeeze=False)[:, 0]
    for block, (model, measured) in zip(blocks, models, strict=True):
        if len(models) > 1:
            block.suptitle(model)
        parts = block.subfigures(2, 1, height_ratios=[upper, _LOWER])
        _at_end(parts[0], measured)
        _over_edits(parts[1], measured)
    return figure


def _at_end(block: SubFigure, measured: pd.DataFrame) -> None:
    """Time per edit, growth of the state and slow-down, each measured when the stream had ended."""
    last = measured[measured["forward_slowdown"].notna()]
    methods, edits = method_order(last["method"]), _span(last["edits"])
    panels = block.subplots(1, 3, sharey=True)
    quantities = {
        "seconds_per_edit": f"time per edit\n(mean over {edits} edits)",
        "state_bytes_per_100_edits": f"growth of the state per 100 edits\n(mean over {edits} edits)",
        "forward_slowdown": f"time of a forward pass after {edits} edits\n(1× is the base model)",
    }
    for axes, (name, label) in zip(panels, quantities.items(), strict=True):
        for place, method in enumerate(methods):
            values, look = last.loc[last["method"] == method, name].dropna(), method_style(method)
            if len(values):
                axes.plot([values.min(), values.max()], [place, place], color=look.colour, linewidth=1)
                axes.plot(values.mean(), place, marker=look.marker, color=look.colour, markersize=5.5)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_formatter(EngFormatter(unit="s"))
    _bytes(panels[1].xaxis, last["state_bytes_per_100_edits"])
    _factors(panels[2], last["forward_slowdown"])
    panels[0].set_yticks(range(len(methods)), [method_style(method).label for method in methods])
    panels[0].set_ylim(len(methods) - 0.4, -0.6)


def _over_edits(block: SubFigure, measured: pd.DataFrame) -> None:
    """Bytes over the number of edits, hollow marks where they are not measured; copies of the model beside them."""
    panels = block.subplots(1, 2, sharey=True)
    titles = {"state_bytes": "state that answering takes, in memory", "journal_bytes": "journal of the steps, on disk"}
    copies, edits = measured.groupby("edits")["checkpoint_bytes"].mean(), sorted(measured["edits"].unique())
    known = set(measured.loc[measured["measured"], "edits"])
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        lines = [(_COPIES, copies)]
        for method in method_order(measured["method"]):
            rows = measured[measured["method"] == method]
            lines.append((method_style(method), rows.groupby("edits")[name].mean()))
        for look, values in lines:
            looks = {"color": look.colour, "marker": look.marker, "linestyle": look.line, "label": look.label}
            axes.plot(values.index, values, **looks, markersize=4.5, linewidth=1)
            estimated = values[[edits not in known for edits in values.index]]
            if look.marker:
                hollow = looks | {"linestyle": "", "label": "_hollow", "markerfacecolor": "white"}
                axes.plot(estimated.index, estimated, **hollow, markersize=4.5)
        axes.set_xscale("log")
        axes.set_xticks(edits, [short(value) for value in edits])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(title=title, xlabel="edits made (hollow marks: extrapolated)")
    _bytes(panels[0].yaxis, measured[[*titles, "checkpoint_bytes"]].stack())
    for axes in panels:
        _label_ends(axes)


def _label_ends(axes: Axes) -> None:
    """Names right of the lines' ends, moved up or down until none covers another; lines that end alike share one."""
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    ends = [(line.get_label(), line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
    to_axes = axes.transScale + axes.transLimits
    ends = sorted(((to_axes.transform((x, y))[1], x, y, label) for label, x, y in ends), key=lambda end: end[0])
    shared = [[ends[0]]]
    for end in ends[1:]:
        alike = end[0] - shared[-1][0][0] < 0.02 and end[1] == shared[-1][0][1]
        shared[-1].append(end) if alike else shared.append([end])
    texts = [textwrap.fill(", ".join(label for *_, label in group), 30) for group in shared]
    line = 1.25 * _LABEL["fontsize"] / 72 / (_LOWER - 0.8)  # of the axes' height
    places = spread([group[0][0] for group in shared], [line * (text.count("\n") + 1) for text in texts])
    for (_, x, y, _), text, place in zip((group[0] for group in shared), texts, places, strict=True):
        axes.annotate(text, (x, y), (1.07, place), textcoords="axes fraction", arrowprops=_LEADER, **_LABEL)


def _bytes(axis: Axis, values: pd.Series) -> None:
    """A logarithmic axis of bytes, from one power of ten to another, with a place for zero where a value is zero."""
    positive = values[values > 0]
    if positive.empty:
        return
    low, high = 10.0 ** np.floor(np.log10(positive.min())), 10.0 ** np.ceil(np.log10(positive.max()))
    linear = (values <= 0).any()
    name, axes = axis.axis_name, axis.axes
    options = {"linthresh": low} if linear else {}
    axes.set(**{f"{name}lim": (min(values.min(), 0) - 0.3 * low if linear else low, 1.5 * high)})
    getattr(axes, f"set_{name}scale")("symlog" if linear else "log", **options)
    axis.set_major_formatter(EngFormatter(unit="B"))
    axis.set_minor_locator(NullLocator())


def _factors(axes: Axes, values: pd.Series) -> None:
    """An axis of ratios to the base model, which stands at 1."""
    axes.axvline(1, color="#777777", linestyle=":", linewidth=1, zorder=0.5)
    if values.max() > 4:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def _span(numbers: pd.Series) -> str:
    return short(numbers.max()) if numbers.nunique() == 1 else f"{short(numbers.min())} to {short(numbers.max())}"
