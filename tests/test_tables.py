import json
import re

import pandas as pd
import pytest
from docutils.core import publish_doctree
from synthetic_streams import stream_dir, write_stream, write_study

from coachhook import figures, report
from coachhook.figure_data import StreamResultError, of_streams
from coachhook.table_formats import restructured_text, write_latex, write_markdown
from coachhook.tables import over_seeds, per_seed, percent, shown


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    streams = write_study(root, steps=2, batch=2)
    streams += write_study(root, steps=2, batch=2, methods=("memit", "coachhook"), setting="round=single")
    return figures.collect(streams)


@pytest.fixture(scope="module")
def means(frame):
    return over_seeds(per_seed(frame))


def means_of(scores, seeds=1, **deviations):
    """A table of given scores (reliability, generality, locality, mean) by method."""
    rows = []
    for method, values in scores.items():
        row = {"model": "m", "dataset": "d_1", "method": method, "protocol": "easyedit", "edits": 4, "seeds": seeds}
        for name, value in zip(("reliability", "generality", "locality", "mean"), values, strict=True):
            row |= {name: value, f"{name}_sd": deviations.get(method, float("nan"))}
        rows.append(row)
    return pd.DataFrame(rows)


def test_a_row_per_stream_after_its_last_batch(frame):
    rows = per_seed(frame)
    assert rows.columns[:6].tolist() == ["dataset", "method", "seed", "reliability", "generality", "locality"]
    assert {"mean", "reliability_not_superseded", "mean_not_superseded", "edits", "model", "protocol"} <= set(rows)
    assert rows["method"].tolist() == [m for m in ("coachhook", "coachhook-nohook", "memit", "ft-m") for _ in "01"] * 2
    assert rows["seed"].tolist() == [0, 1] * 8
    assert rows["edits"].unique().tolist() == [4]
    last = frame[(frame["method"] == "memit") & (frame["setting"] == "default") & (frame["protocol"] == "easyedit")]
    last = last[(last["dataset"] == "world-completions") & (last["seed"] == 1)]
    assert rows.loc[5, "locality"] == last.set_index("step").loc[2, "locality"]


def test_mean_and_deviation_over_seeds(frame, means):
    assert means["method"].tolist() == ["coachhook", "coachhook-nohook", "memit", "ft-m"] * 2
    assert means.columns[:6].tolist() == ["model", "dataset", "method", "protocol", "edits", "seeds"]
    rows = per_seed(frame).query("method == 'memit' and dataset == 'world-completions'")
    assert len(rows) == means.loc[2, "seeds"] == 2
    assert means.loc[2, "locality"] == pytest.approx(rows["locality"].mean())
    assert means.loc[2, "locality_sd"] == pytest.approx(rows["locality"].std())
    assert means.loc[2, "mean_not_superseded"] == pytest.approx(rows["mean_not_superseded"].mean())


def test_a_method_that_draws_nothing_from_the_seed_is_named(tmp_path):
    scores = dict.fromkeys(("memit", "serac", "coachhook"), (0.9, 0.8, 0.7, 0.8))
    for seeds, deviations, told in (
        (3, {"memit": 0.01, "serac": 0.0, "coachhook": 0.02}, "the best in bold. The same whatever the seed: SERAC."),
        (3, {"memit": 0.01, "serac": 1e-5, "coachhook": 0.02}, "the best in bold."),
        (1, {}, "the best in bold."),
    ):
        write_markdown(means_of(scores, seeds, **deviations), tmp_path / "table.md")
        assert (tmp_path / "table.md").read_text().splitlines()[0].endswith(told)


def test_protocols_and_rounds_are_kept_apart(frame, means):
    generated = per_seed(frame, "generate")
    assert generated["protocol"].unique().tolist() == ["generate"]
    assert (generated["reliability"] < per_seed(frame)["reliability"]).all()
    assert set(per_seed(frame, kind="single_round")["method"]) == {"memit", "coachhook"}
    with pytest.raises(StreamResultError, match="no row has the protocol 'rome'"):
        per_seed(frame, "rome")
    with pytest.raises(StreamResultError, match='no stream has the setting "round=single"'):
        per_seed(frame[frame["setting"] == "default"], kind="single_round")


def test_a_table_may_be_of_some_streams_only(frame):
    wanted = stream_dir("anywhere", "world-questions", "memit", seed=1)
    rows = per_seed(of_streams(frame, [wanted]))
    assert rows[["dataset", "method", "seed"]].to_numpy().tolist() == [["world-questions", "memit", 1]]


def test_a_single_round_is_about_the_records_of_all_its_steps(tmp_path):
    directory = stream_dir(tmp_path, "d", "memit", "round=single")
    write_stream(directory, "memit", steps=3, batch=2)
    records = pd.read_parquet(directory / "records.parquet")
    records = records[records["batch"] == records["step"]]  # a step's records are about its own batch
    records.to_parquet(directory / "records.parquet")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] == 3))
    edits = records[(records["kind"] == "edit") & (records["protocol"] == "easyedit") & ~records["superseded"]]
    table = per_seed(figures.collect([directory]), kind="single_round")
    assert table["reliability_not_superseded"].item() == pytest.approx(edits["score"].mean())
    assert edits["step"].nunique() == 3


@pytest.fixture
def measured(frame):
    """The same with fluency and a task, in the rows of the last evaluation as streams write them."""
    last = frame["step"] == frame["step"].max()
    values = {"fluency": 6.0, "fluency_base": 6.25, "ability_boolq_acc": 0.5, "ability_boolq_acc_base": 0.625}
    later = {name: (value + 0.25 * frame["seed"]).where(last) for name, value in values.items()}
    return frame.assign(**later)


def test_fluency_and_general_ability_stand_in_the_table_before_and_after(frame, measured, tmp_path):
    rows = per_seed(measured)
    assert rows.drop(columns=["fluency", "fluency_base", "ability_boolq_acc", "ability_boolq_acc_base"]).equals(
        per_seed(frame)
    )
    assert rows["fluency"].tolist() == [6.0, 6.25] * 8
    means = over_seeds(rows)
    write_markdown(means, tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| method | fluency | boolq_acc |\n| --- | ---: | ---: |\n| Base model | 6.38 | 0.75 |" in text
    assert "| MEMIT | 6.12 ± 0.18 | 0.625 ± 0.18 |" in text
    assert text.count("fluency (n-gram entropy in bits)") == 2  # a part per data set
    write_latex(means, tmp_path / "table.tex")
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"Base model & 6.38 & 0.75 \\" in latex
    assert r"boolq\_acc" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    publish_doctree(restructured_text(means), settings_overrides={"halt_level": 1, "report_level": 1})
    assert report.summary(means)["world.world-questions.memit.ability_boolq_acc"] == 0.625


def test_markdown(means, tmp_path):
    path = tmp_path / "table.md"
    write_markdown(means, path)
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * 2 * (2 + 4)
    assert {line.count("|") for line in lines} == {6}
    assert "| CoachHooK without hook |" in text
    assert text.startswith("Consecutive batch editing")
    assert "protocol easyedit; mean ± standard deviation over 2 seeds" in text
    assert text.count("**world-questions, without superseded requests**") == 1
    assert "Single round" not in text
    write_markdown(means, path, "single_round")
    assert path.read_text(encoding="utf-8").startswith("Single round")
    assert list(tmp_path.iterdir()) == [path]


def test_the_best_of_each_score_is_bold_and_so_are_those_that_look_alike(tmp_path):
    scores = {"coachhook": (0.99, 0.5, 0.7, 0.73), "memit": (0.9899, 0.6, 0.7, 0.7633), "ft-m": (0.1, 0.1, 0.1, 0.1)}
    write_markdown(means_of(scores), tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert "| CoachHooK | **99.0** | 50.0 | **70.0** | 73.0 |" in lines
    assert "| MEMIT | **99.0** | **60.0** | **70.0** | **76.3** |" in lines
    assert "| FT-M | 10.0 | 10.0 | 10.0 | 10.0 |" in lines
    assert "one seed" in lines[0]


def test_one_part_where_nothing_is_contradicted(means, tmp_path):
    for score in ("reliability", "generality", "locality", "mean"):
        means = means.assign(**{f"{score}_not_superseded": means[score]})
    write_markdown(means, tmp_path / "table.md")
    assert "superseded" not in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_the_report_shows_the_same_numbers_under_captions(means, tmp_path):
    tree = publish_doctree(restructured_text(means), settings_overrides={"halt_level": 1, "report_level": 1})
    tables = list(tree.findall(lambda node: node.tagname == "table"))
    assert [table.next_node(lambda node: node.tagname == "title").astext() for table in tables] == [
        "world-completions, all requests",
        "world-questions, all requests",
        "world-completions, without superseded requests",
        "world-questions, without superseded requests",
    ]
    write_markdown(means, tmp_path / "table.md")
    cells = [entry.astext() for entry in tree.findall(lambda node: node.tagname == "entry")]
    rows = re.findall(r"^\| (.*) \|$", (tmp_path / "table.md").read_text(encoding="utf-8"), flags=re.M)
    plain = [cell.strip("*") for row in rows if "---" not in row for cell in row.split(" | ")]
    assert cells == plain


def latex(means, path, kind="consecutive"):
    write_latex(means, path, kind)
    text = path.read_text(encoding="utf-8")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    return text, [row for row in re.split(r"\\\\\n", body) if row]


def test_latex_is_a_booktabs_table_with_a_full_grid(means, tmp_path):
    text, rows = latex(means, tmp_path / "table.tex")
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1] == ["table", "tabular"]
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    assert columns == 1 + 2 * 4
    for row in rows:
        spanned = sum(int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", row))
        assert row.count("&") - row.count(r"\&") + 1 + spanned == columns
    assert len(rows) == 2 + 2 * (1 + 4)
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    assert text.isascii()
    assert text.count(r"\midrule") == 2
    assert r"\cmidrule(lr){2-5}\cmidrule(lr){6-9}" in text
    assert r"\usepackage{booktabs}" in text.splitlines()[0]


def test_latex_escapes_and_marks_the_best(tmp_path):
    scores = {"coachhook": (0.99, 0.5, 0.7, 0.73), "a_b&c%": (0.5, 0.6, 0.7, 0.6)}
    text, rows = latex(means_of(scores, seeds=3, coachhook=0.012), tmp_path / "table.tex", "single_round")
    assert r"d\_1" in rows[0]
    assert rows[-1].startswith(r"A\_B\&C\% & 50.0 & \textbf{60.0} & \textbf{70.0}")
    assert r"\textbf{99.0}\,{\scriptsize$\pm$\,1.2} & 50.0\,{\scriptsize$\pm$\,1.2}" in rows[-2]
    assert r"mean $\pm$ standard deviation over 3 seeds" in text
    assert r"\label{tab:single-round-easyedit}" in text


def test_latex_has_a_row_per_method_and_a_dash_for_what_was_not_run(tmp_path):
    first, other = means_of({"memit": (0.5,) * 4, "rome": (0.4,) * 4}), means_of({"memit": (0.6,) * 4})
    _, rows = latex(pd.concat([first, other.assign(dataset="other")]), tmp_path / "table.tex")
    assert rows[-1].strip() == "ROME & 40.0 & 40.0 & 40.0 & 40.0 & -- & -- & -- & --"


def test_percent():
    assert percent(0.9512, 0.0049) == "95.1 ± 0.5"
    assert percent(0.9512, float("nan")) == "95.1"
    assert percent(float("nan"), float("nan")) == "–"
    assert shown(0.99999) == shown(1.0)
