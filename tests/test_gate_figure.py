import numpy as np
import pandas as pd
import pytest

from coachhook import gate_figure
from coachhook.figure_style import save, style


def rows():
    """A made-up study of two models with three seeds, of every kind of row."""
    random = np.random.default_rng(0)
    for model in ("wide", "narrow"):
        for seed in range(3):
            about = {"model": model, "seed": seed}

            def scores():
                names = ("reliability", "generality", "locality", "locality_same_subject")
                return dict(zip(names, random.uniform(0.5, 1, 4), strict=True))

            for gate in ("leverage", "paper", "off"):
                yield {"kind": "tradeoff", "gate": gate, "setting": 0, **about, **scores()}
                for edits in (250, 500, 1000):
                    yield {"kind": "edits", "gate": gate, "setting": edits, **about, **scores()}
            for gate in ("leverage, edited fraction", "ratio, edited fraction"):
                for fraction in (0.5, 0.8):
                    yield {"kind": "tradeoff", "gate": gate, "setting": fraction, **about, **scores()}
            for gate in ("leverage", "paper"):
                for count in (0, 10):
                    shares = dict(zip(("subjects", "others"), random.uniform(0, 1, 2), strict=True))
                    yield {"kind": "length", "gate": gate, "setting": count, **about, **shares}
            for size in (64, 256):
                yield {"kind": "sketch", "gate": "leverage", "setting": size, "agreement": 0.999, **about}


@pytest.fixture
def csv(tmp_path):
    pd.DataFrame(rows()).to_csv(tmp_path / "gate.csv", index=False)
    return tmp_path / "gate.csv"


def test_every_gate_and_every_question_is_shown(csv):
    frame = pd.read_csv(csv)
    with style():
        figure = gate_figure.draw(frame)
    panels = np.array(figure.axes).reshape(4, 2)
    assert [axes.get_title() for axes in panels[0]] == ["wide", "narrow"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        look.label for look in gate_figure.GATES.values()
    ]
    means = frame[(frame["kind"] == "edits") & (frame["model"] == "narrow") & (frame["gate"] == "paper")]
    expected = means.groupby("setting")[["reliability", "generality", "locality"]].mean().mean(axis=1)
    drawn = [line.get_ydata() for line in panels[2, 1].get_lines()]
    assert any(len(some) == 3 and np.allclose(some, expected) for some in drawn)
    differs = panels[3, 0].get_lines()[0].get_ydata()
    assert np.allclose(differs, 0.1)


def test_the_same_numbers_are_the_same_bytes(csv, tmp_path):
    for name in ("a", "b"):
        with style():
            save(gate_figure.draw(pd.read_csv(csv)), tmp_path / f"{name}.pdf", tmp_path / f"{name}.png")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
