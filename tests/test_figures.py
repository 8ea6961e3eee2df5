import pandas as pd
import pytest
from PIL import Image
from synthetic_streams import (
    MORE_SHAPES,
    SHAPES,
    stream_dir,
    write_gate_study,
    write_grid,
    write_stream,
    write_study,
    write_sweep,
)

from coachhook import figures
from coachhook.figure_style import METHOD_STYLES, method_order, method_style
from coachhook.requests import EditRequest, write_requests

SWEEPS = {
    "lambda": ("covariance_weight", [100, 1000, 15000]),
    "layers": ("layers", ["0", "0-1", "0-1-2"]),
    "alpha": ("alpha", [1.4, 2.2]),
    "batch_size": ("batch_size", [5, 50]),
}


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """Streams for every figure, by its name."""
    root = tmp_path_factory.mktemp("study")
    study = write_study(root, datasets=("questions",), steps=3, batch=2)
    found = dict.fromkeys(("hook", "zscore", "retention", "frontier", "cost"), study)
    found["sensitivity"] = write_grid(root, [20, 200], [1.4, 2.2], models=("small", "large"), steps=2)
    found["gate"] = write_gate_study(root / "gates", seeds=2)
    for name, (parameter, values) in SWEEPS.items():
        methods = ("coachhook", "memit") if name == "batch_size" else ("coachhook",)
        found[name] = write_sweep(root, parameter, values, methods=methods, steps=2)
    towns = ["Oslo"] * 30 + ["Bonn"] * 10
    edits = [EditRequest(f"S{n % 30}", "Where does {} live?", town) for n, town in enumerate(towns)]
    write_requests(edits, root / "requests.json")
    found["contradictions"] = [root / "requests.json"]
    return found


def drawn(name, frame, folder):
    paths = [folder / f"{name}.{ending}" for ending in ("csv", "pdf", "png")]
    folder.mkdir(exist_ok=True)
    figures.write_csv(frame, paths[0])
    figures.draw(name, *paths)
    assert sorted(folder.iterdir()) == sorted(paths)
    return paths


@pytest.mark.parametrize("name", figures.names())
def test_every_figure_is_drawn_from_its_csv_with_the_same_bytes(streams, tmp_path, name, monkeypatch):
    options = {"dataset": "towns", "seeds": [0, 1], "edits": 40} if name == "contradictions" else {}
    frame = figures.data(name, streams[name], **options)
    first = drawn(name, frame, tmp_path / "first")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    again = drawn(name, frame, tmp_path / "again")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    _, pdf, png = first
    assert pdf.read_bytes().startswith(b"%PDF")
    with Image.open(png) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert 600 < image.width < 2600
        assert len(image.convert("RGB").getcolors(10**6)) > 20  # something is drawn


def test_another_csv_is_another_figure(streams, tmp_path):
    frame = figures.data("layers", streams["layers"])
    first = drawn("layers", frame, tmp_path / "first")
    again = drawn("layers", frame.assign(locality=0.5), tmp_path / "again")
    assert first[2].read_bytes() != again[2].read_bytes()


def test_a_csv_is_read_back_as_it_was_written(streams, tmp_path):
    frame = figures.data("hook", streams["hook"])
    figures.write_csv(frame, tmp_path / "hook.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "hook.csv"), frame, check_dtype=False, rtol=1e-5)


def test_the_smallest_study_can_be_drawn(tmp_path):
    directory = stream_dir(tmp_path, "d", "coachhook")
    write_stream(directory, "coachhook", steps=1, batch=1, same_subject=False, zscores=True)
    for name in ("hook", "zscore", "retention", "frontier", "cost"):
        drawn(name, figures.data(name, [directory]), tmp_path / name)
    drawn("lambda", figures.data("lambda", [directory], defaults={"covariance_weight": 10}), tmp_path / "lambda")


def test_models_and_missing_probes_get_rows_of_their_own(tmp_path):
    streams = [stream_dir(tmp_path, "d", "memit", model=model) for model in ("gpt2-xl", "gpt-j")]
    for directory, same_subject in zip(streams, (True, False), strict=True):
        write_stream(directory, "memit", steps=2, batch=1, same_subject=same_subject)
    frame = figures.data("hook", streams)
    _, _, tall = drawn("hook", frame, tmp_path / "two")
    _, _, flat = drawn("hook", frame[frame["model"] == "gpt2-xl"], tmp_path / "one")
    with Image.open(tall) as two, Image.open(flat) as one:
        assert two.width == one.width
        assert two.height > 1.5 * one.height


def test_methods_are_told_apart_by_colour_and_by_marker():
    methods = [*SHAPES, *MORE_SHAPES, "coachhook-leverage"]
    assert set(METHOD_STYLES) == set(methods)
    looks = [method_style(method) for method in methods]
    for part in ("label", "colour", "marker"):
        assert len({getattr(look, part) for look in looks}) == len(looks)


def test_a_method_added_later_needs_no_style_of_its_own():
    later = method_style("pmet")
    assert later == method_style("pmet")
    assert later.label == "PMET"
    assert later.marker not in {look.marker for look in METHOD_STYLES.values()}
    assert method_order(["zed", "ft-m", "pmet", "coachhook"]) == ["coachhook", "ft-m", "pmet", "zed"]


def test_sixteen_methods_fit_on_every_figure(tmp_path):
    """Rows and names that a few methods do not need are there, and no figure is wider than a page."""
    methods = [*SHAPES, *MORE_SHAPES]
    streams = write_study(tmp_path / "streams", datasets=("d",), methods=methods, seeds=1, steps=2, batch=1)
    for name in ("hook", "retention", "frontier", "cost"):
        _, _, png = drawn(name, figures.data(name, streams), tmp_path / name)
        with Image.open(png) as image:
            assert image.width < 2800


def test_an_unknown_figure_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'heat' is no figure"):
        figures.draw("heat", tmp_path / "x.csv", tmp_path / "x.pdf", tmp_path / "x.png")
