"""How every figure looks: one colour and one marker per method, sizes, and files that hold no date."""

import os
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure

from coachhook.whole_files import whole_file


class Style(NamedTuple):
    """A label, a colour, a marker and a line style."""

    label: str
    colour: str
    marker: str | tuple[int, int, int]
    line: str = "-"


# Chosen so that neighbours stay apart under every common colour blindness (Okabe and Ito's palette first, then by
# distance in CIELAB as seen with each); with this many methods it takes the marker to tell all of them apart.
METHOD_STYLES = {
    "coachhook": Style("CoachHooK", "#0072B2", "o"),
    "coachhook-nohook": Style("CoachHooK without hook", "#E69F00", "s"),
    "coachhook-leverage": Style("CoachHooK, leverage gate", "#56B4E9", "h"),
    "memit": Style("MEMIT", "#009E73", "^"),
    "rome": Style("ROME", "#663311", "v"),
    "emmet": Style("EMMET", "#AACC77", "P"),
    "alphaedit": Style("AlphaEdit", "#EE2244", "X"),
    "rect": Style("RECT", "#7700FF", "<"),
    "prune": Style("PRUNE", "#000077", ">"),
    "ultraedit": Style("UltraEdit", "#CC79A7", "p"),
    "ft-m": Style("FT-M", "#D55E00", "D"),
    "ft-l": Style("FT-L", "#999999", "d"),
    "lora": Style("LoRA", "#442255", (4, 1, 0)),
    "mend": Style("MEND", "#445555", "x"),
    "serac": Style("SERAC", "#000000", "*"),
    "grace": Style("GRACE", "#6600BB", "+"),
    "wise": Style("WISE", "#9966FF", (6, 1, 0)),
}
# For methods added later: a method's name picks its style, so that it looks the same in every figure and nobody has
# to choose one. (8, 0, 0): an octagon; (3, 1, n): a star of three rays.
_FURTHER_STYLES = tuple(
    (colour, marker)
    for marker in ((8, 0, 0), (3, 1, 0), (3, 1, 180))
    for colour in ("#117733", "#AA4499", "#886600", "#DD7788", "#225588")
)
SCORE_STYLES = {
    "reliability": Style("Reliability", "#332288", "o", "-"),
    "generality": Style("Generality", "#CC6677", "s", "--"),
    "locality": Style("Locality", "#117733", "^", "-."),
    "locality_same_subject": Style("Locality, same subject", "#999933", "v", ":"),
    "mean": Style("Mean", "#000000", "D", "-"),
}


def method_style(method: str) -> Style:
    """The style of a method, the same wherever it is drawn; a method without one is labelled with its name."""
    if method in METHOD_STYLES:
        return METHOD_STYLES[method]
    return Style(method.upper(), *_FURTHER_STYLES[zlib.crc32(method.encode()) % len(_FURTHER_STYLES)])


def method_order(methods) -> list[str]:
    """Methods in the order they are listed everywhere: those with a style of their own first."""
    known = list(METHOD_STYLES)
    return sorted(set(methods), key=lambda name: (known.index(name) if name in known else len(known), name))


def style() -> AbstractContextManager:
    """Matplotlib settings of every figure, for a `with` block."""
    fonts = {"font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 9}
    ticks = {"xtick.labelsize": 8, "ytick.labelsize": 8, "lines.markersize": 4, "lines.linewidth": 1.4}
    lines = {"grid.color": "#E5E5E5", "axes.edgecolor": "#555555", "axes.linewidth": 0.7, "pdf.fonttype": 42}
    return matplotlib.rc_context({**sns.axes_style("whitegrid"), **fonts, **ticks, **lines})


def save(figure: Figure, pdf: str | os.PathLike, png: str | os.PathLike) -> None:
    """Write a figure as PDF and as PNG (200 dpi): the same figure, the same bytes; whole files only."""
    for path, options in ((Path(pdf), {"metadata": {"CreationDate": None}}), (Path(png), {"dpi": 200})):
        with whole_file(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], **options)
