import json

import pytest
from synthetic_streams import stream_dir, write_stream

from coachhook import figures
from coachhook.cost import ForwardCost, StepCost
from coachhook.figure_data import StreamResultError


def rows_of(directory):
    return [json.loads(line) for line in (directory / "cost.jsonl").read_text().splitlines()]


@pytest.fixture
def stream(tmp_path):
    directory = stream_dir(tmp_path, "d", "grace")
    write_stream(directory, "grace", steps=25, batch=5)
    return directory


def test_measured_steps_are_rows(stream):
    frame = figures.data("cost", [stream])
    frame = frame[frame["measured"]]
    assert frame["edits"].tolist() == [5, 10, 100, 125]
    steps = rows_of(stream)[:-1]
    assert frame["state_bytes"].tolist() == [steps[step - 1]["state_bytes"] for step in (1, 2, 20, 25)]
    assert frame["journal_bytes"].tolist() == [
        sum(step["journal_bytes"] for step in steps[:count]) for count in (1, 2, 20, 25)
    ]
    assert frame["checkpoint_bytes"].tolist() == [5_000_000 * batches for batches in (1, 2, 20, 25)]
    assert frame["seconds_per_edit"].iloc[-1] == pytest.approx(sum(step["seconds"] for step in steps) / 125)


def test_what_no_step_measured_lies_on_the_streams_line(stream):
    frame = figures.data("cost", [stream]).set_index("edits")
    assert frame.index.tolist() == [1, 5, 10, 100, 125, 1000]
    estimated = frame[~frame["measured"]]
    assert estimated.index.tolist() == [1, 1000]
    first, last = frame.state_bytes[[5, 125]]
    slope = (last - first) / 120
    assert estimated["state_bytes"].tolist() == pytest.approx(
        [max(first - 4 * slope, slope), first + 995 * slope], abs=1
    )
    per_edit = frame.journal_bytes[125] / 125
    assert estimated["journal_bytes"].tolist() == pytest.approx([per_edit, 1000 * per_edit], abs=1)
    assert estimated["checkpoint_bytes"].tolist() == [5_000_000, 5_000_000 * 200]
    assert estimated["seconds_per_edit"].isna().all()


def test_growth_and_slowdown_stand_at_the_end(stream):
    frame = figures.data("cost", [stream])
    assert frame.loc[frame["forward_slowdown"].notna(), "edits"].tolist() == [125]
    last = frame.set_index("edits").loc[125]
    assert last["forward_slowdown"] == rows_of(stream)[-1]["forward_slowdown"]
    assert last["state_bytes_per_100_edits"] == pytest.approx(1.1e3 * 100)


def test_one_step_shows_no_growth(tmp_path):
    directory = stream_dir(tmp_path, "d", "memit")
    write_stream(directory, "memit", steps=1, batch=10)
    frame = figures.data("cost", [directory])
    assert frame["edits"].tolist() == [10]
    assert frame["state_bytes_per_100_edits"].isna().all()


def test_the_rows_are_those_that_streams_write(stream):
    *steps, last = rows_of(stream)
    assert all(StepCost(**row) for row in steps)
    assert ForwardCost(**last)


def test_what_was_not_measured_is_named(stream):
    (stream / "cost.jsonl").unlink()
    with pytest.raises(StreamResultError, match=r"cost\.jsonl is missing; run this stream"):
        figures.data("cost", [stream])
    other = stream.parent.with_name("setting~alpha=1.8") / "seed~0"
    with pytest.raises(StreamResultError, match='no stream has the setting "default"'):
        figures.data("cost", [other])
