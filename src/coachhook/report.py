"""What came out of a study: a few numbers for a metrics file, and a short text in plain English."""

from itertools import pairwise

import pandas as pd

from coachhook.figure_data import FURTHER_SCORES, MORE_SCORES, SCORES, side_effects
from coachhook.figure_style import method_order, method_style
from coachhook.table_formats import restructured_text, span
from coachhook.tables import ROW, percent, shown

_PAPER_ORDER = ("coachhook", "coachhook-nohook", "memit")  # best mean first, as in figure 4 of the paper
_HOW = {
    "consecutive": "one batch after the other and never reset. The scores are those after the last batch",
    "single_round": "each batch alone in the base model. The scores are those of each batch by itself",
}


def summary(means: pd.DataFrame) -> dict[str, float | int | None]:
    """A table (from `tables.over_seeds`) as one flat dictionary, ready for JSON: `<model>.<data set>.<method>.<score>`.

    Scores are 0 to 1, fluency and general ability as they are; all rounded to 4 digits, means over seeds; `<score>_sd`
    is the standard deviation, None with one seed. The order of the keys depends only on what was run.
    """
    numbers = {}
    for row in means.to_dict("records"):
        name = ".".join(row[key] for key in ROW)
        numbers[f"{name}.edits"] = int(row["edits"])
        numbers[f"{name}.seeds"] = int(row["seeds"])
        for score in [*SCORES, *MORE_SCORES, *FURTHER_SCORES, *side_effects(means)]:
            if pd.notna(row.get(score)):
                deviation = row[f"{score}_sd"]
                numbers[f"{name}.{score}"] = round(row[score], 4)
                numbers[f"{name}.{score}_sd"] = None if pd.isna(deviation) else round(deviation, 4)
    return numbers


def summary_text(means: pd.DataFrame, study: str, kind: str = "consecutive") -> str:
    """What was run and what came out, as a few paragraphs of reStructuredText, and the table itself.

    means: from `tables.over_seeds`; kind: its round, a key of `tables.ROUNDS`.
    """
    paragraphs = [_what_was_run(means, study, kind)]
    for (model, dataset), rows in means.groupby(["model", "dataset"]):
        ranked = rows.sort_values("mean", ascending=False, kind="stable").to_dict("records")
        sentences = [_winner(ranked), *_single_scores(ranked), _paper_order(ranked) if kind == "consecutive" else ""]
        paragraphs.append(f"**{dataset}**, on the model {model}: " + " ".join(filter(None, sentences)))
    return "\n\n".join([*paragraphs, restructured_text(means, kind)])


def _what_was_run(means: pd.DataFrame, study: str, kind: str) -> str:
    methods = ", ".join(method_style(method).label for method in method_order(means["method"]))
    seeds = f"{span(means['seeds'])} {'seed' if means['seeds'].max() == 1 else 'seeds'}"
    return (
        f"Study *{study}*. Methods: {methods}. Each edited {span(means['edits'])} facts, {_HOW[kind]}, over all "
        f"edits (protocol ``{means['protocol'].iloc[0]}``), with {seeds} per data set; the mean is that of "
        "reliability, generality and locality; ± is one standard deviation over seeds."
    )


def _label(row: dict) -> str:
    return method_style(row["method"]).label


def _mean(row: dict) -> str:
    return f"{percent(row['mean'], row['mean_sd'])} %"


def _spread(*rows: dict) -> float | None:
    """The largest standard deviation of these methods' means over seeds; None where one has a single seed."""
    deviations = [row["mean_sd"] for row in rows]
    return None if any(pd.isna(deviation) for deviation in deviations) else max(deviations)


def _within_spread(above: dict, below: dict) -> bool:
    """Whether two means are not told apart: their gap is no more than the spread over seeds, or does not show."""
    spread = _spread(above, below)
    gap = above["mean"] - below["mean"]
    return shown(above["mean"]) == shown(below["mean"]) or (spread is not None and gap <= spread)


def _gap(above: dict, below: dict) -> str:
    """How far two means lie apart, held against the spread over seeds."""
    gap, spread = above["mean"] - below["mean"], _spread(above, below)
    points = f"{100 * gap:.1f} points above {_label(below)} ({_mean(below)})"
    if spread is None:
        return f"{points}; one seed shows no spread to hold that against"
    if _within_spread(above, below):
        return f"{points}, no more than the spread over seeds: the two are not told apart"
    times = f"{gap / spread:.1f}" if gap < 100 * spread else "over 100"
    return f"{points}, {times} times the larger spread over seeds"


def _winner(ranked: list[dict]) -> str:
    best, *others = ranked
    if not others:
        return f"{_label(best)} reaches a mean of {_mean(best)}; no other method was run."
    equal = [row for row in others if shown(row["mean"]) == shown(best["mean"])]
    if equal:
        return f"{_names([best, *equal])} share the highest mean, {_mean(best)}."
    return f"{_label(best)} has the highest mean, {_mean(best)}, {_gap(best, others[0])}."


def _single_scores(ranked: list[dict]) -> list[str]:
    """The winner's scores, and those that other methods are visibly better in."""
    best = ranked[0]
    known = [score for score in SCORES if pd.notna(best.get(score))]
    parts = [f"{score} {percent(best[score], best[f'{score}_sd'])} %" for score in known]
    sentences = [f"{_label(best)} scores {', '.join(parts)}."]
    for score in known:
        top = max(shown(row[score]) for row in ranked if pd.notna(row[score]))
        if top > shown(best[score]):
            leaders = [row for row in ranked if shown(row[score]) == top]
            share = "share" if len(leaders) > 1 else "has"
            sentences.append(f"{_names(leaders)} {share} the highest {score}, {top:.1f} %.")
    return sentences


def _names(rows: list[dict]) -> str:
    *first, last = [_label(row) for row in rows]
    return f"{', '.join(first)} and {last}" if first else last


def _paper_order(ranked: list[dict]) -> str:
    """Whether the paper's order of the means came out, as far as its methods were run."""
    by_method = {row["method"]: row for row in ranked}
    pairs = list(pairwise(by_method[method] for method in _PAPER_ORDER if method in by_method))
    if not pairs:
        return ""
    order = " above ".join(_label(row) for row in [pairs[0][0], *(low for _, low in pairs)])
    wrong = [
        f"{_label(low)} stands {_gap(low, high)}" for high, low in pairs if shown(low["mean"]) > shown(high["mean"])
    ]
    if wrong:
        return f"The paper's order ({order}) does not hold: {'; '.join(wrong)}."
    close = [f"{_label(high)} and {_label(low)}" for high, low in pairs if _within_spread(high, low)]
    if close:
        names = " and for ".join(close)
        return f"The paper's order ({order}) holds, but only within the spread over seeds for {names}."
    return f"The paper's order ({order}) holds."
