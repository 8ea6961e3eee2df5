import pandas as pd
import pytest
from synthetic_streams import stream_dir, write_stream, write_study

from coachhook import figures
from coachhook.figure_data import StreamResultError
from coachhook.tables import percent, table, write_markdown


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    return figures.collect(write_study(tmp_path_factory.mktemp("study"), steps=2, batch=2))


def test_one_row_per_data_set_and_method_after_the_last_batch(frame):
    means = table(frame)
    assert means["method"].tolist() == ["coachhook", "coachhook-nohook", "memit", "ft-m"] * 2
    assert means.columns[:6].tolist() == ["model", "dataset", "method", "protocol", "edits", "seeds"]
    assert means["edits"].unique().tolist() == [4]
    rows = frame[(frame["method"] == "memit") & (frame["step"] == 2) & (frame["protocol"] == "easyedit")]
    rows = rows[rows["dataset"] == "world-completions"]
    assert len(rows) == means.loc[2, "seeds"] == 2
    assert means.loc[2, "locality"] == pytest.approx(rows["locality"].mean())
    assert means.loc[2, "locality_sd"] == pytest.approx(rows["locality"].std())
    assert means.loc[2, "mean_not_superseded"] == pytest.approx(rows["mean_not_superseded"].mean())


def test_protocols_are_kept_apart(frame):
    generated = table(frame, "generate")
    assert generated["protocol"].unique().tolist() == ["generate"]
    assert (generated["reliability"] < table(frame)["reliability"]).all()
    with pytest.raises(StreamResultError, match="no row has the protocol 'rome'"):
        table(frame, "rome")


def test_markdown(frame, tmp_path):
    path = tmp_path / "table.md"
    write_markdown(table(frame), path)
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + 8)
    assert len({line.count("|") for line in lines}) == 1
    assert "| CoachHooK without hook |" in text
    assert text.count("**") == 2 * 2 * 2  # the best mean of each data set, in both tables
    assert "protocol `easyedit`" in text
    assert "no later request contradicts" in text
    assert list(tmp_path.iterdir()) == [path]


def test_one_table_where_nothing_is_contradicted(tmp_path):
    directory = stream_dir(tmp_path, "d", "memit")
    write_stream(directory, "memit", steps=1, batch=1, same_subject=False)
    records = pd.read_parquet(directory / "records.parquet")
    means = table(figures.collect([directory]))
    assert not records["superseded"].any()
    for score in ("reliability", "generality", "locality", "mean"):
        means[f"{score}_not_superseded"] = means[score]
    write_markdown(means, tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "contradicts" not in text
    assert "±" not in text.splitlines()[-1]
    assert "same subject" not in text


def test_percent():
    assert percent(0.9512, 0.0049) == "95.1 ± 0.5"
    assert percent(0.9512, float("nan")) == "95.1"
    assert percent(float("nan"), float("nan")) == "–"
