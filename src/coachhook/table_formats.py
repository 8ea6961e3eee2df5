"""Tables of scores as Markdown, reStructuredText and LaTeX: in percent, methods as rows, the best of each in bold."""

import os
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import pandas as pd

from coachhook.figure_data import VALID, side_effects
from coachhook.figure_style import SCORE_STYLES, method_order, method_style
from coachhook.tables import SHOWN, percent, shown
from coachhook.whole_files import write_text

_CAPTIONS = {
    "consecutive": "Consecutive batch editing: one batch after the other, never reset. Scores after the last, over all",
    "single_round": "Single round: each batch edits the base model and is scored alone. Scores over all",
}
_SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {"±": r"$\pm$", "–": "--"}
_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def write_markdown(means: pd.DataFrame, path: str | os.PathLike, kind: str = "consecutive") -> None:
    """Write a table (from `tables.over_seeds`) as Markdown, whole or not at all: a part per model and data set.

    Further parts leave out superseded requests, where that changes any score, and show fluency and general ability,
    where they were measured. kind: a key of `tables.ROUNDS`.
    """
    text = f"{caption(means, kind)}\n"
    for title, lines in _parts(means):
        lines = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
        text += f"\n**{title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(path, text)


def restructured_text(means: pd.DataFrame, kind: str = "consecutive") -> str:
    """The same as reStructuredText, for the report."""
    text = f"{caption(means, kind)}\n"
    for title, lines in _parts(means):
        text += f"\n.. list-table:: {title}\n   :header-rows: 1\n\n"
        text += "".join(f"   {' ' if place else '*'} - {cell}\n" for line in lines for place, cell in enumerate(line))
    return text


def write_latex(means: pd.DataFrame, path: str | os.PathLike, kind: str = "consecutive") -> None:
    """Write a table as LaTeX (package booktabs), whole or not at all; data sets stand side by side."""
    groups, width = _groups(means), len(SHOWN)
    titles = [rf"\multicolumn{{{width}}}{{c}}{{{_escape(title)}}}" for title, _ in groups]
    starts = range(2, 2 + width * len(groups), width)
    lines = [
        " & ".join(["", *titles]),
        " & ".join(["Method", *[SCORE_STYLES[score].label for score in SHOWN] * len(groups)]),
    ]
    lines[1] = "".join(rf"\cmidrule(lr){{{start}-{start + width - 1}}}" for start in starts) + "\n" + lines[1]
    methods = method_order(means["method"])
    for suffix, what in _suffixes(means):
        lines.append(f"\\midrule\n\\multicolumn{{{1 + width * len(groups)}}}{{l}}{{\\emph{{{what}}}}}")
        blocks = [_cells(rows, suffix, methods, _latex_cell) for _, rows in groups]
        for method, *cells in zip(methods, *blocks, strict=True):
            lines.append(" & ".join([_escape(method_style(method).label), *chain(*cells)]))
    head = (
        "% \\usepackage{booktabs}\n\\begin{table}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        f"\\caption{{{_escape(caption(means, kind))}}}\n"
        f"\\label{{tab:{kind.replace('_', '-')}-{means['protocol'].iloc[0]}}}\n"
        f"\\begin{{tabular}}{{l{'r' * width * len(groups)}}}\n\\toprule\n"
    )
    body = "".join(f"{line} \\\\\n" for line in lines) + "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    write_text(path, head + body + "".join(_latex_part(*part) for part in _side_effect_parts(means)))


def caption(means: pd.DataFrame, kind: str) -> str:
    """What the table of a round shows, in plain words."""
    edits, seeds, protocol = span(means["edits"]), span(means["seeds"]), means["protocol"].iloc[0]
    over = "one seed" if seeds == "1" else f"mean ± standard deviation over {seeds} seeds"
    text = f"{_CAPTIONS[kind]} {edits} edits, in percent; protocol {protocol}; {over}; the best in bold."
    if same := _without_spread(means):
        text += f" The same whatever the seed: {', '.join(same)}."
    return text


def _without_spread(means: pd.DataFrame) -> list[str]:
    """Labels of methods in which nothing is drawn from the seed: their ± 0.0 is no measure of anything."""
    if means["seeds"].min() < 2:
        return []
    spread = means.set_index("method")[[f"{score}_sd" for score in SHOWN]].max(axis=1).groupby(level=0).max()
    methods = spread.index[spread < 1e-9]  # of rounding
    return [method_style(method).label for method in method_order(methods)]


def span(numbers: pd.Series) -> str:
    """`3`, or `1 to 3`."""
    return str(numbers.max()) if numbers.nunique() == 1 else f"{numbers.min()} to {numbers.max()}"


def _parts(means: pd.DataFrame) -> Iterator[tuple[str, list[list[str]]]]:
    """Title and lines, the head first, of each part of a table that has one column per score."""
    head = ["method", *(SCORE_STYLES[score].label.lower() for score in SHOWN)]
    for suffix, what in _suffixes(means):
        for title, rows in _groups(means):
            methods = rows["method"].tolist()
            cells = _cells(rows, suffix, methods, _plain_cell)
            labels = [method_style(method).label for method in methods]
            yield f"{title}, {what}", [head, *([label, *line] for label, line in zip(labels, cells, strict=True))]
    yield from _side_effect_parts(means)


def _side_effect_parts(means: pd.DataFrame) -> Iterator[tuple[str, list[list[str]]]]:
    """Title and lines of what was measured besides the scores: the base model first, then it as each method left it."""
    names = [name for name in side_effects(means) if not name.endswith("_base")]
    for title, rows in _groups(means) if names else ():
        lines = [["method", *(name.removeprefix("ability_") for name in names)]]
        lines.append(["Base model", *(_number(rows[f"{name}_base"].mean()) for name in names)])
        for row in rows.to_dict("records"):
            label = method_style(row["method"]).label
            lines.append([label, *(_number(row[name], row[f"{name}_sd"]) for name in names)])
        yield f"{title}, fluency (n-gram entropy in bits) and general ability (tasks of lm-eval), not in percent", lines


def _number(mean: float, deviation: float = float("nan")) -> str:
    if pd.isna(mean):
        return "–"
    return f"{mean:.3g}" if pd.isna(deviation) else f"{mean:.3g} ± {deviation:.2g}"


def _groups(means: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each model and data set, with a title."""
    several = means["model"].nunique() > 1
    groups = means.groupby(["model", "dataset"], sort=False)
    return [(f"{dataset} ({model})" if several else dataset, rows) for (model, dataset), rows in groups]


def _suffixes(means: pd.DataFrame) -> list[tuple[str, str]]:
    """All requests and, where it changes any score, those that no later one contradicts: suffix and words."""
    everything = [("", "all requests")]
    if not all(score + VALID in means for score in SHOWN):
        return everything
    same = np.allclose(means[SHOWN], means[[score + VALID for score in SHOWN]], equal_nan=True)
    return everything if same else [*everything, (VALID, "without superseded requests")]


def _cells(
    rows: pd.DataFrame, suffix: str, methods: list[str], cell: Callable[[float, float, bool], str]
) -> list[list[str]]:
    """A line of scores per method; `cell` gets a mean, its deviation and whether it is the best of its column."""
    rows = rows.set_index("method").reindex(methods)
    columns = []
    for score in SHOWN:
        means, deviations = rows[score + suffix], rows[f"{score}{suffix}_sd"]
        best = means.map(shown) == shown(means.max())
        columns.append([cell(*numbers) for numbers in zip(means, deviations, best, strict=True)])
    return [list(line) for line in zip(*columns, strict=True)]


def _plain_cell(mean: float, deviation: float, best: bool) -> str:
    text = percent(mean, deviation)
    return f"**{text}**" if best else text


def _latex_cell(mean: float, deviation: float, best: bool) -> str:
    number, *rest = percent(mean, deviation).split(" ")
    text = rf"\textbf{{{number}}}" if best else _escape(number)
    return text + (rf"\,{{\scriptsize$\pm$\,{rest[1]}}}" if rest else "")


def _latex_part(title: str, lines: list[list[str]]) -> str:
    """A table of its own."""
    first, *rest = (" & ".join(map(_escape, line)) + " \\\\\n" for line in lines)
    return (
        f"\n\\begin{{table}}\n\\centering\\footnotesize\n\\caption{{{_escape(title)}.}}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}\n\\toprule\n{first}\\midrule\n{''.join(rest)}"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(char, char) for char in text)
