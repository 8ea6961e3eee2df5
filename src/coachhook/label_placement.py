"""Direct labels that cover neither each other nor the marks. Where they stand depends on the figure alone."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

_RADII = (2, 5, 9, 14, 20, 27, 35, 44, 54, 66, 80)  # points between the mark's edge and the label's
_ANGLES = np.deg2rad(np.arange(0, 360, 15))
_ROUNDS = 5  # labels are placed again, as often, once all others have a place
_MARK = 7.0  # points that a mark takes
_COVERED, _OUTSIDE = 50.0, 1e6  # cost per square point, beside one per point of distance
_CROSSED, _CLOSER = 8.0, 8.0  # per sample of a leader over something, per mark that is closer than the label's own
_SAMPLES = np.linspace(0.15, 1, 12)[:, None]  # of a leader, which starts at its own mark
_LEADER_FROM = 6.5  # points
_TEXT = {"ha": "center", "va": "center", "linespacing": 1.0}
_LEADER = {"arrowstyle": "-", "color": "#777777", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}


def label_marks(
    axes: Axes,
    marks: np.ndarray,
    bars: np.ndarray,
    labels: Sequence[str],
    colours: Sequence[str],
    size: float = 7.5,
) -> None:
    """Write each label near its mark, in a darker shade, with a thin line to it where it has to stand off.

    marks: (n, 2) in data units; bars: (n, 2), half lengths of their error bars; colours: of the marks. This settles
    the figure's layout: limits, titles and legends come first.
    """
    figure = axes.get_figure(root=True)
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    centres = axes.transData.transform(marks) * points
    reach = np.abs(axes.transData.transform(marks + bars) * points - centres)
    sizes = np.array([_text_size(axes, label, size) for label in labels]) * points + [6, 2]
    taken = [_boxes(centres, _MARK), _boxes(centres, reach * [2, 0] + 1.5), _boxes(centres, reach * [0, 2] + 1.5)]
    places = _places(centres, sizes, np.concatenate(taken), axes.bbox.extents * points)
    near = np.clip(centres, places - sizes / 2, places + sizes / 2)
    drawn = zip(labels, colours, marks, places - centres, near - centres, sizes, strict=True)
    for label, colour, mark, offset, end, extent in drawn:
        text = _TEXT | {"color": [0.6 * part for part in to_rgb(colour)], "fontsize": size}
        leader = _LEADER | {"relpos": tuple((end - offset) / extent + 0.5)}
        leader = leader if np.hypot(*end) > _MARK / 2 + _LEADER_FROM else None
        axes.annotate(label, mark, offset, textcoords="offset points", arrowprops=leader, **text)


def _text_size(axes: Axes, label: str, size: float) -> np.ndarray:
    text = axes.text(0, 0, label, fontsize=size, **_TEXT)
    extent = text.get_window_extent()
    text.remove()
    return np.array([extent.width, extent.height])


def _boxes(centres: np.ndarray, sizes: np.ndarray | float) -> np.ndarray:
    """Left, bottom, right and top of boxes around centres, (n, 4)."""
    return np.concatenate([centres - np.asarray(sizes) / 2, centres + np.asarray(sizes) / 2], axis=1)


def _places(centres: np.ndarray, sizes: np.ndarray, taken: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Centres of the labels, (n, 2) in points: each in turn where it costs least, the most crowded mark first."""
    candidates = [_candidates(centre, size) for centre, size in zip(centres, sizes, strict=True)]
    places = centres.copy()
    placed = np.zeros(len(centres), dtype=bool)
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    order = np.argsort(np.exp(-distances / 30).sum(axis=1))[::-1]
    for _ in range(_ROUNDS):
        for index in order:
            others = placed & (np.arange(len(centres)) != index)
            boxes = np.concatenate([taken, _boxes(places[others], sizes[others])])
            where, cost = candidates[index]
            here = _boxes(where, sizes[index])
            outside = np.prod(sizes[index]) - _overlap(here, frame[None]).sum(axis=1)
            cost = cost + _COVERED * _overlap(here, boxes).sum(axis=1) + _OUTSIDE * (outside > 1e-6)
            cost = cost + _confusion(here, index, centres, boxes[len(centres) * 3 :])
            places[index], placed[index] = where[cost.argmin()], True
    return places


def _candidates(centre: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a label may stand, (n, 2), and what that costs: its distance; to the right and above first."""
    radii, angles = (grid.ravel() for grid in np.meshgrid(_RADII, _ANGLES, indexing="ij"))
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    steps = rays * (radii[:, None] + 3.5)
    side = np.sign(np.round(rays, 9))
    return centre + steps + side * size / 2, radii + 1 - rays @ [0.6, 0.4]


def _confusion(here: np.ndarray, index: int, centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What it costs, per candidate box, that its leader crosses marks and labels or that another mark is closer."""
    near = np.clip(centres[None], here[:, None, :2], here[:, None, 2:])
    away = np.linalg.norm(near - centres, axis=2)
    closer = (away < away[:, [index]]).sum(axis=1)
    leader = centres[index] + _SAMPLES * (near[:, index] - centres[index])[:, None]
    crossed = np.concatenate([_boxes(np.delete(centres, index, axis=0), _MARK), labels])
    inside = (leader[:, :, None] > crossed[:, :2]) & (leader[:, :, None] < crossed[:, 2:])
    return _CLOSER * closer + _CROSSED * inside.all(axis=3).sum(axis=(1, 2)) * (away[:, index] > _LEADER_FROM)


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Areas that boxes share, (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


def spread(centres: Sequence[float], sizes: Sequence[float]) -> np.ndarray:
    """Centres of intervals, moved as little as can be (least squares) until none overlaps another.

    They stay within 0 to 1, where they fit.
    """
    order = np.argsort(centres, kind="stable")
    widths = np.asarray(sizes, dtype=float)[order]
    steps = np.cumsum(widths) - widths / 2
    pools: list[list[float]] = []  # isotonic regression by pooling neighbours that are out of order: sum and count
    for value in np.asarray(centres, dtype=float)[order] - steps:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            value, count = pools.pop()
            pools[-1] = [pools[-1][0] + value, pools[-1][1] + count]
    moved = np.concatenate([np.full(int(count), value / count) for value, count in pools])
    places = np.empty(len(order))
    places[order] = np.clip(moved, 0, max(0.0, 1 - widths.sum())) + steps
    return places
