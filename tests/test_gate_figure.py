import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic_streams import stream_dir, write_gate_study

from coachhook import gate_figure
from coachhook.figure_data import StreamResultError
from coachhook.figure_style import style


@pytest.fixture
def frame(tmp_path):
    return gate_figure.data(write_gate_study(tmp_path))


def test_every_gate_and_every_question_is_shown(frame):
    with style():
        figure = gate_figure.draw(frame)
    panels = np.array(figure.axes).reshape(5, 2)
    assert [axes.get_title() for axes in panels[0]] == ["narrow", "wide"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        look.label for look in gate_figure.GATES.values()
    ]
    drawn = [line.get_xydata() for line in panels[3, 1].get_lines()]
    for off in (1.2, 3.0):
        assert any(len(some) == 3 and np.allclose(some[:, 1], off * some[:, 0]) for some in drawn)
    assert np.allclose(panels[4, 0].get_lines()[0].get_ydata(), 0.1)


def test_a_line_is_the_mean_over_seeds(frame):
    with style():
        figure = gate_figure.draw(frame)
    wide = frame[(frame["model"] == "wide") & (frame["gate"] == "leverage, edited fraction")]
    means = wide.groupby("value")[["locality", "generality"]].mean().to_numpy()
    drawn = [line.get_xydata() for line in np.array(figure.axes).reshape(5, 2)[0, 1].get_lines()]
    assert any(some.shape == means.shape and np.allclose(some, means) for some in drawn)


def test_retrieval_is_drawn_against_the_tokens_own_key(frame):
    with style():
        figure = gate_figure.draw(frame)
    wide = frame[frame["model"] == "wide"]
    drawn = [line.get_xydata() for line in np.array(figure.axes).reshape(5, 2)[1, 1].get_lines()]
    for score in ("generality", "locality"):
        means = wide[wide["gate"] == "leverage, sharpness"].groupby("value")[score].mean()
        assert any(len(some) == 3 and np.allclose(some, [*means.items()]) for some in drawn)
        own = wide.loc[wide["gate"] == "leverage, own key", score].mean()
        assert any(len(some) == 2 and np.allclose(some[:, 1], own) for some in drawn)


def test_what_the_base_model_recalls_is_drawn_behind_the_shares_swapped(frame):
    with style():
        figure = gate_figure.draw(frame)
    means = frame[(frame["model"] == "wide") & (frame["kind"] == "length")].groupby("value")["recalled"].mean()
    drawn = [line.get_xydata() for line in np.array(figure.axes).reshape(5, 2)[2, 1].get_lines()]
    assert any(len(some) == 2 and np.allclose(some, [*means.items()]) for some in drawn)


@pytest.mark.parametrize("models", [["wide"], ["narrow", "wide"]])
def test_nothing_written_is_cut_off_at_the_edge(frame, models):
    with style():
        figure = gate_figure.draw(frame[frame["model"].isin(models)])
        FigureCanvasAgg(figure).draw()
    written = [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    for text in (*written, *figure.legends[0].get_texts()):
        left, right = text.get_window_extent().intervalx
        assert left >= 0, text.get_text()
        assert right <= figure.bbox.width, text.get_text()


def test_the_rows_say_which_stream_they_are_of(frame):
    assert frame.columns[:5].tolist() == ["model", "dataset", "method", "setting", "seed"]
    counts = frame.groupby(["model", "method", "seed"]).size()
    assert len(counts) == 12
    assert counts["wide", "coachhook-leverage", 0] > counts["wide", "coachhook", 0]


def test_a_stream_whose_gates_were_not_compared_is_named(tmp_path):
    directory = stream_dir(tmp_path, "world-completions", "coachhook")
    directory.mkdir(parents=True)
    with pytest.raises(StreamResultError, match=r"gates.csv is missing; compare the gates of this stream"):
        gate_figure.data([directory])
