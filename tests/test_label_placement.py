import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from coachhook.label_placement import label_marks, spread


def boxes(axes):
    return [Text.get_window_extent(text) for text in axes.texts]  # without the line to the mark


def labelled(marks, labels):
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.2, 1.2), ylim=(-0.2, 1.2))
    marks = np.array(marks)
    label_marks(axes, marks, np.zeros_like(marks), labels, ["#0072B2"] * len(marks))
    figure.draw_without_rendering()
    return axes


@pytest.mark.parametrize("width", [0.05, 0.3, 1.0])
def test_labels_cover_neither_each_other_nor_marks_nor_leave_the_axes(width):
    marks = np.random.default_rng(3).random((16, 2)) * width
    axes = labelled(marks, [f"method {number}" for number in range(16)])
    places, centres = boxes(axes), axes.transData.transform(marks)
    for index, box in enumerate(places):
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1
        assert not any(box.overlaps(other) for other in places[:index])
        assert not any(box.contains(*centre) for centre in centres)


def test_a_lone_mark_has_its_label_beside_it_and_no_line():
    axes = labelled([[0.5, 0.5]], ["MEMIT"])
    (box,) = boxes(axes)
    x, y = axes.transData.transform([0.5, 0.5])
    assert 0 < box.x0 - x < 15
    assert abs((box.y0 + box.y1) / 2 - y) < 20
    assert axes.texts[0].arrow_patch is None


def test_a_label_that_stands_off_has_a_line_to_its_mark():
    axes = labelled(np.full((12, 2), 0.5) + np.linspace(0, 0.01, 12)[:, None], ["a long name"] * 12)
    assert any(text.arrow_patch is not None for text in axes.texts)


def test_names_at_line_ends_move_only_where_they_must():
    assert spread([0.5, 0.2], [0.1, 0.1]) == pytest.approx([0.5, 0.2])
    assert spread([0.5, 0.5, 0.5], [0.1] * 3) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.0, 1.0], [0.2, 0.1]) == pytest.approx([0.1, 0.95])
    moved = np.sort(spread(np.random.default_rng(0).random(16), [0.06] * 16))
    assert (np.diff(moved) > 0.06 - 1e-9).all()
    assert moved[0] > 0.03 - 1e-9
    assert moved[-1] < 0.97 + 1e-9
