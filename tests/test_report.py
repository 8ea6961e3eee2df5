import json

import pandas as pd
import pytest
from docutils.core import publish_doctree

from coachhook import report
from coachhook.tables import over_seeds, per_seed

NEXT = {"coachhook": 0.8, "coachhook-nohook": 0.7, "memit": 0.5}


def frame_of(means, seeds=(0, 1, 2), spread=0.01, datasets=("completions",)):
    """Rows as `figures.collect` returns them: every score is the method's mean, the seeds `spread` apart."""
    rows = []
    for dataset in datasets:
        for method, mean in means.items():
            for place, seed in enumerate(seeds):
                score = mean + spread * (place - (len(seeds) - 1) / 2)
                row = {"model": "mini", "dataset": dataset, "method": method, "setting": "default", "seed": seed}
                row |= {"step": 3, "edits": 30, "protocol": "easyedit", "locality_same_subject": float("nan")}
                rows.append(row | dict.fromkeys(("reliability", "generality", "locality", "mean"), score))
    rows.append({**rows[0], "step": 1, "edits": 10, "mean": 0.1})
    return pd.DataFrame(rows)


def summary(frame):
    return report.summary(over_seeds(per_seed(frame)))


def summary_text(frame, study, kind="consecutive"):
    return report.summary_text(over_seeds(per_seed(frame, kind=kind)), study, kind)


def one_line(text):
    return " ".join(text.split())


def test_summary_is_flat_small_and_in_a_stable_order():
    numbers = summary(frame_of(NEXT))
    assert numbers["mini.completions.coachhook.mean"] == 0.8
    assert numbers["mini.completions.coachhook.mean_sd"] == 0.01
    assert numbers["mini.completions.memit.edits"] == 30
    assert not any("same_subject" in key for key in numbers)
    shuffled = frame_of(NEXT).sample(frac=1, random_state=0)
    assert json.dumps(summary(shuffled)) == json.dumps(numbers)
    alone = summary(frame_of(NEXT, seeds=(0,)))
    assert alone["mini.completions.coachhook.mean_sd"] is None
    assert alone["mini.completions.coachhook.seeds"] == 1


def test_the_text_is_valid_and_says_what_was_run():
    text = summary_text(frame_of(NEXT, datasets=("completions", "questions")), "mini")
    publish_doctree(text, settings_overrides={"halt_level": 1, "report_level": 1})
    flat = one_line(text)
    assert "Study *mini*. Methods: CoachHooK, CoachHooK without hook, MEMIT." in flat
    assert "Each edited 30 facts" in flat
    assert "with 3 seeds per data set" in flat
    assert "``easyedit``" in flat
    assert flat.count("has the highest mean") == 2


def test_the_text_gives_the_winner_and_holds_the_gap_against_the_spread():
    flat = one_line(summary_text(frame_of(NEXT), "mini"))
    assert "CoachHooK has the highest mean, 80.0 ± 1.0 %, 10.0 points above CoachHooK without hook" in flat
    assert "(70.0 ± 1.0 %), 10.0 times the larger spread over seeds." in flat
    assert "CoachHooK scores reliability 80.0 ± 1.0 %, generality" in flat
    assert "The paper's order (CoachHooK above CoachHooK without hook above MEMIT) holds." in flat
    assert "over 100 times" in summary_text(frame_of(NEXT, spread=0.0), "mini")


@pytest.mark.parametrize(
    ("means", "options", "words"),
    [
        ({**NEXT, "memit": 0.75}, {}, "does not hold: MEMIT stands 5.0 points above CoachHooK without hook"),
        ({**NEXT, "ft-m": 0.9}, {}, "FT-M has the highest mean, 90.0 ± 1.0 %"),
        ({**NEXT, "coachhook-nohook": 0.795}, {}, "the two are not told apart"),
        ({**NEXT, "coachhook-nohook": 0.795}, {}, "only within the spread over seeds for CoachHooK and"),
        (NEXT, {"seeds": (0,)}, "one seed shows no spread to hold that against"),
        ({"ft-m": 0.5}, {}, "FT-M reaches a mean of 50.0 ± 1.0 %; no other method was run."),
    ],
)
def test_the_text_is_honest(means, options, words):
    flat = one_line(summary_text(frame_of(means, **options), "mini"))
    assert words in flat
    holds = "holds" in flat
    assert holds == ("does not hold" not in flat and len(means) > 1)


def test_the_text_names_scores_another_method_is_better_in():
    frame = frame_of(NEXT)
    frame.loc[frame["method"] == "memit", "locality"] = 0.99
    flat = one_line(summary_text(frame, "mini"))
    assert "MEMIT has the highest locality, 99.0 %." in flat
    assert "the highest reliability" not in flat
    frame["generality"] = float("nan")
    assert "generality 80" not in summary_text(frame, "mini")


def test_what_looks_alike_is_called_equal():
    frame = frame_of({**NEXT, "memit": 0.8})
    flat = one_line(summary_text(frame, "mini"))
    assert "CoachHooK and MEMIT share the highest mean, 80.0 ± 1.0 %." in flat
    assert "the highest reliability" not in flat
    frame = frame_of(NEXT)
    frame.loc[frame["method"] == "coachhook", "locality"] = 0.9896
    frame.loc[frame["method"] == "memit", "locality"] = 0.9904  # both are 99.0
    assert "the highest locality" not in summary_text(frame, "mini")
    frame.loc[frame["method"] != "coachhook", "locality"] = 0.995
    assert "CoachHooK without hook and MEMIT share the highest locality, 99.5 %." in one_line(
        summary_text(frame, "mini")
    )


def test_a_single_round_is_told_as_what_it_is():
    frame = frame_of(NEXT).assign(setting="round=single")
    text = summary_text(frame, "mini", "single_round")
    publish_doctree(text, settings_overrides={"halt_level": 1, "report_level": 1})
    assert "each batch alone in the base model" in one_line(text)
    assert "never reset" not in text
    assert "paper's order" not in text  # which is about consecutive batches


def test_the_text_holds_the_table():
    text = summary_text(frame_of(NEXT), "mini")
    assert ".. list-table:: completions, all requests" in text
    assert "   * - CoachHooK\n     - **80.0 ± 1.0**" in text
