import pandas as pd
import pytest

from coachhook import figures
from coachhook.requests import EditRequest, write_requests
from coachhook.stream_draw import draw_requests


def _edit(subject: str, target: str) -> EditRequest:
    return EditRequest(subject, "Where does {} live?", target, target_true="Rome")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "requests.json"
    write_requests([_edit(f"S{n}", "Oslo") for n in range(20)] + [_edit(f"S{n}", "Bonn") for n in range(10)], path)
    return path


def test_the_share_is_what_marking_every_beginning_of_the_stream_gives(file):
    from coachhook.requests import mark_superseded, read_requests

    rows = figures.data("contradictions", [file], dataset="places", seeds=[0, 1], edits=30)
    for seed in (0, 1):
        stream = draw_requests(read_requests(file), 30, seed)
        counted = [sum(request.superseded for request in mark_superseded(stream[:n])) for n in range(1, 31)]
        mine = rows[rows["seed"] == seed]
        assert mine["superseded"].tolist() == counted
        assert mine["share"].tolist() == pytest.approx([count / n for n, count in enumerate(counted, 1)])
    assert rows["superseded"].max() == 10
    assert set(rows["dataset"]) == {"places"}


def test_a_data_set_smaller_than_the_stream_is_taken_whole_and_a_long_one_thinned(file, tmp_path):
    assert figures.data("contradictions", [file], dataset="places", seeds=[0], edits=1000)["edits"].max() == 30
    many = tmp_path / "many.json"
    write_requests([_edit(f"S{n % 500}", f"T{n}") for n in range(1001)], many)
    rows = figures.data("contradictions", [many], dataset="places", seeds=[0], edits=1001)
    assert len(rows) <= 201
    assert rows["edits"].iloc[-1] == 1001


def test_it_is_drawn_the_same_from_the_same_numbers(file, tmp_path):
    csv = tmp_path / "contradictions.csv"
    parts = [figures.data("contradictions", [file], dataset=name, seeds=[0, 1], edits=30) for name in ("a", "b")]
    figures.write_csv(pd.concat(parts), csv)
    for number in ("1", "2"):
        figures.draw("contradictions", csv, tmp_path / f"{number}.pdf", tmp_path / f"{number}.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert (tmp_path / "1.pdf").read_bytes() == (tmp_path / "2.pdf").read_bytes()
