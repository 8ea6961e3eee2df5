import json
import shutil

import numpy as np
import pandas as pd
import pytest
from synthetic_streams import stream_dir, write_grid, write_stream, write_study, write_sweep

from coachhook import figures
from coachhook.figure_data import StreamResultError, final, run_of, value_order

SCORES = ["reliability", "generality", "locality", "locality_same_subject", "mean"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), steps=3, batch=2)


def test_the_path_says_what_was_run(tmp_path):
    directory = stream_dir(tmp_path, "questions", "ft-m", "alpha=1.8", 3, "mini")
    expected = {"model": "mini", "dataset": "questions", "method": "ft-m", "setting": "alpha=1.8", "seed": 3}
    assert run_of(directory) == expected
    with pytest.raises(StreamResultError, match=r"the path lacks dataset~"):
        run_of(tmp_path / "model~mini")
    with pytest.raises(StreamResultError, match="seed~x is no whole number"):
        run_of(directory.with_name("seed~x"))


def test_collect_gives_every_row_of_every_stream(study):
    frame = figures.collect(study)
    assert len(frame) == len(study) * 3 * 2
    assert frame.columns[:5].tolist() == ["model", "dataset", "method", "setting", "seed"]
    first = json.loads((study[0] / "metrics.jsonl").read_text().splitlines()[0])
    row = frame[(frame["dataset"] == "world-completions") & (frame["method"] == "coachhook")].iloc[0]
    assert row[SCORES].tolist() == pytest.approx([first[score] for score in SCORES])
    assert row["alpha_1"] == first["alpha"]["1"]
    assert frame.loc[frame["method"] == "memit", "alpha_1"].isna().all()


def test_streams_may_be_given_by_their_metrics_in_any_order(study):
    files = [directory / "metrics.jsonl" for directory in reversed(study)]
    pd.testing.assert_frame_equal(figures.collect(files), figures.collect(study))


def test_scores_without_superseded_requests(study):
    frame = figures.collect(study[:1])
    last = final(frame).iloc[0]
    records = pd.read_parquet(study[0] / "records.parquet")
    edits = records[(records["step"] == 3) & (records["protocol"] == "easyedit") & (records["kind"] == "edit")]
    assert edits["superseded"].sum() == 1
    assert last["reliability_not_superseded"] == edits[~edits["superseded"]]["score"].mean()
    assert "mean_not_superseded" not in figures.collect(study[:1], valid=False)


def test_null_scores_become_nan(tmp_path):
    write_stream(stream_dir(tmp_path, "d", "memit"), "memit", steps=2, batch=2, same_subject=False)
    frame = figures.data("hook", [stream_dir(tmp_path, "d", "memit")])
    assert frame["locality_same_subject"].isna().all()
    assert frame["locality"].notna().all()


def test_hook_columns_and_rows(study):
    other = stream_dir(study[0].parents[4], "world-completions", "coachhook", "alpha=1.8")
    write_stream(other, "coachhook", steps=3, batch=2)
    frame = figures.data("hook", [*study, other])
    columns = ["method", "seed", "edits", "reliability", "generality", "locality"]
    assert frame.columns[:6].tolist() == columns
    assert {"dataset", "model", "protocol", "mean", "locality_same_subject"} <= set(frame.columns[6:])
    assert len(frame) == len(study) * 3
    assert frame["protocol"].unique().tolist() == ["easyedit"]
    generated = figures.data("hook", study, protocol="generate")
    assert (generated["reliability"] < frame["reliability"]).all()


@pytest.mark.parametrize(
    ("name", "parameter", "values", "default", "expected"),
    [
        ("lambda", "covariance_weight", ["30", "100", "3000"], 1000, ["30", "100", "1000", "3000"]),
        ("layers", "layers", ["0-1-2", "2", "0-1"], [1, 2], ["2", "0-1", "1-2", "0-1-2"]),
        ("alpha", "alpha", ["2.6", "1.8"], 2.2, ["1.8", "2.2", "2.6"]),
        ("batch_size", "batch_size", ["100", "5"], None, ["5", "100"]),
    ],
)
def test_sweeps(tmp_path, name, parameter, values, default, expected):
    streams = write_sweep(tmp_path, parameter, values, seeds=1, steps=2)
    streams.append(stream_dir(tmp_path, "world-completions", "coachhook"))
    write_stream(streams[-1], "coachhook", steps=2)
    defaults = {} if default is None else {parameter: default, "seed": 0}
    frame = figures.data(name, streams, defaults=defaults)
    assert frame.columns[:6].tolist() == ["method", "seed", parameter, "reliability", "generality", "locality"]
    assert frame[parameter].tolist() == expected
    chosen = [] if default is None else [str(default).strip("[]").replace(", ", "-")]
    assert frame.loc[frame["is_default"], parameter].tolist() == chosen
    assert (frame["edits"] == 8).all()


def test_sensitivity_has_every_pair_of_values_with_unnamed_ones_from_the_defaults(tmp_path):
    streams = write_grid(tmp_path, [20, 200], [1.4, 2.2], default=(200, 2.2), models=("mini", "wide"), steps=1)
    partly = stream_dir(tmp_path, "world-completions", "coachhook", "alpha=2.6", model="mini")  # λ as by default
    other = stream_dir(tmp_path, "world-completions", "coachhook", "alpha=2.6,clamp=1", model="mini")
    for directory in (partly, other):
        write_stream(directory, "coachhook", steps=1)
    frame = figures.data("sensitivity", [*streams, partly, other], defaults={"covariance_weight": 200, "alpha": 2.2})
    found = frame[["model", "covariance_weight", "alpha"]].astype(str).agg(" ".join, axis="columns").tolist()
    assert found == [
        *("mini 20 1.4", "mini 20 2.2", "mini 200 1.4", "mini 200 2.2", "mini 200 2.6"),
        *("wide 20 1.4", "wide 20 2.2", "wide 200 1.4", "wide 200 2.2"),
    ]
    assert frame.loc[frame["is_default"], ["model", "covariance_weight"]].to_numpy().tolist() == [
        ["mini", "200"],
        ["wide", "200"],
    ]


def test_the_frontier_is_where_default_streams_end(study):
    frame = figures.data("frontier", study)
    assert len(frame) == len(study)
    assert (frame["edits"] == 6).all()
    last = final(figures.collect(study, valid=False))
    assert sorted(frame["generality"]) == sorted(last["generality"])
    assert (figures.data("frontier", study, protocol="generate")["protocol"] == "generate").all()


def test_layers_given_as_a_list_match_their_setting():
    assert value_order("0-1-2") == value_order([0, 1, 2]) > value_order("1-2") > value_order("9")


def test_retention_is_the_mean_over_requests_and_seeds(study):
    memit = [directory for directory in study if "method~memit" in str(directory)]
    frame = figures.data("retention", memit)
    assert len(frame) == 2 * (1 + 2 + 3)  # two data sets, a triangle of three steps
    records = pd.concat([pd.read_parquet(directory / "records.parquet") for directory in memit[:2]])
    here = records[(records["kind"] == "edit") & (records["protocol"] == "easyedit")]
    here = here[(here["batch"] == 1) & (here["step"] == 3)]
    cell = frame[(frame["batch"] == 1) & (frame["step"] == 3) & (frame["dataset"] == "world-completions")]
    assert cell["reliability"].item() == pytest.approx(here["score"].mean())
    assert cell["reliability_not_superseded"].item() == pytest.approx(here[~here["superseded"]]["score"].mean())
    assert (cell["requests"].item(), cell["seeds"].item()) == (4, 2)


def test_zscores_are_counted_in_bins(study):
    frame = figures.data("zscore", study)
    with_z = [directory for directory in study if (directory / "zscores.parquet").exists()]
    assert frame["count"].sum() == sum(len(pd.read_parquet(path / "zscores.parquet")) for path in with_z)
    shares = frame.groupby(["dataset", "layer", "kind", "role"])["share"].sum()
    assert np.allclose(shares, 1)
    assert len(shares) == 2 * 3 * 2 * 2
    assert frame.loc[frame["layer"] == 1, "alpha"].unique().tolist() == pytest.approx([2.2 - 0.1 - 0.03])


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda path: (path / "metrics.jsonl").unlink(), r"metrics\.jsonl is missing; run this stream"),
        (lambda path: (path / "metrics.jsonl").write_text('{"a": 1'), r"metrics\.jsonl: line 1 is no valid JSON"),
        (lambda path: (path / "metrics.jsonl").write_text(""), "hold no evaluation"),
        (lambda path: (path / "records.parquet").unlink(), r"records\.parquet is missing"),
        (lambda path: (path / "records.parquet").write_text("x"), r"records\.parquet cannot be read"),
    ],
)
def test_broken_results_are_named(tmp_path, break_it, problem):
    directory = stream_dir(tmp_path, "d", "memit")
    write_stream(directory, "memit", steps=1, batch=1)
    break_it(directory)
    with pytest.raises(StreamResultError, match=problem) as error:
        figures.collect([directory])
    assert "\n" not in str(error.value)
    shutil.rmtree(directory)


def test_what_was_not_run_is_named(study):
    memit = [directory for directory in study if "method~memit" in str(directory)]
    for name, options, problem in (
        ("hook", {"protocol": "rome"}, "the protocol 'rome'"),
        ("retention", {"protocol": "rome"}, "records of the protocol 'rome'"),
        ("lambda", {"protocol": "rome"}, "no row has the protocol 'rome'; there is easyedit, generate"),
        ("lambda", {}, "no stream has a setting covariance_weight="),
        ("zscore", {}, "no default stream of coachhook holds zscores"),
    ):
        with pytest.raises(StreamResultError, match=problem):
            figures.data(name, memit, **options)
    with pytest.raises(StreamResultError, match="no stream directory was given"):
        figures.collect([])
    with pytest.raises(ValueError, match="'hooks' is no figure; use one of hook, lambda"):
        figures.data("hooks", study)
