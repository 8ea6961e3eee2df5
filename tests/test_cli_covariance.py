import gzip
import json
import logging

import numpy as np
import pytest
from conftest import TEXT, build_model
from typer.testing import CliRunner

from coachhook.cli import app
from coachhook.covariance import read_covariance, unfinished_path
from coachhook.loading import load_base_model
from coachhook.needs import Available
from coachhook.preflight import plan_covariance


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(words, *args):
    result = call(*args)
    assert result.exit_code == 1, result.output
    assert words in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("model")
    build_model("gpt2").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(TEXT), encoding="utf-8")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps({"body": t}) + "\n" for t in TEXT).encode()))
    return folder


def test_a_folder_of_texts(directory, corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "c.safetensors"
    result = call("covariance", directory, "--texts", corpus, "--texts-field", "body", "--out", out, "--layers", "1,3")
    assert result.exit_code == 0, result.output
    both = read_covariance(out, build_model("gpt2"), (1, 3))
    call("covariance", directory, "--texts", corpus / "a.txt", "--out", out, "--layers", "1,3")
    assert both.tokens == 2 * read_covariance(out).tokens
    assert "will need about" in caplog.text


def test_published_moments_are_imported_and_exported(directory, corpus, tmp_path):
    out, stats, again = tmp_path / "c.safetensors", tmp_path / "stats", tmp_path / "again.safetensors"
    texts = ("--texts", corpus / "a.txt", "--layers", "1,3", "--dtype", "float32", "--device", "cpu")
    assert call("covariance", directory, *texts, "--out", out, "--export", stats).exit_code == 0
    names = sorted(path.name for path in stats.iterdir())
    assert names == [f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz" for layer in (1, 3)]
    assert call("covariance", directory, "--import", stats, "--layers", "3", "--out", again).exit_code == 0
    assert read_covariance(again, build_model("gpt2")).layers == (3,)
    (stats / names[0]).unlink()
    (stats / names[1]).unlink()
    assert call("covariance", directory, "--out", again, "--export", stats).exit_code == 0
    with np.load(stats / names[1]) as file:
        assert int(file["mom2.count"]) == read_covariance(out).tokens


def test_what_the_user_can_mend_is_one_line(directory, corpus, tmp_path):
    start = ("covariance", directory, "--out", tmp_path / "c.safetensors")
    chosen = (*start, "--layers", "1")
    refused("--texts: give a text to compute the covariance from, or --import, or --export", *start)
    refused("--texts and --import: give one", *start, "--texts", corpus, "--import", corpus)
    refused("--layers: name the layers", *start, "--texts", corpus)
    refused("holds no .npz file", *start, "--import", corpus)
    refused("c.safetensors: cannot be read", *start, "--export", corpus)
    refused("needs its revision (--texts-revision COMMIT)", *chosen, "--texts", "wikimedia/wikipedia")
    hub = ("--texts", "wikimedia/wikipedia", "--texts-config", "20231101.en", "--texts-revision", "b04c8d1")
    refused("wikimedia/wikipedia: cannot be read from the hub", *chosen, *hub)
    refused("--device: gpu cannot be used", *chosen, "--texts", corpus, "--device", "gpu")
    refused("dtype: 'int4' is unknown", *chosen, "--texts", corpus, "--dtype", "int4")
    refused("has no field 'text', but body", *chosen, "--texts", corpus / "b.jsonl.gz")
    refused("configuration cannot be read", "covariance", tmp_path, *start[2:], "--texts", corpus, "--layers", "1")
    assert not (tmp_path / "c.safetensors").exists()


def test_what_cannot_fit_is_refused_before_anything_is_loaded(directory, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Available, "measure", lambda *args: Available(1_000_000, 10**12, 10**12))
    monkeypatch.setattr("coachhook.cli.covariance_command.load", lambda *args: pytest.fail("the model was loaded"))
    words = "MB of memory on cpu, 100 MB of it for libraries, 1 MB are free"
    out = tmp_path / "c.safetensors"
    refused(words, "covariance", directory, "--texts", corpus, "--layers", "1", "--out", out, "--device", "cpu")


def test_what_a_killed_job_left_counts_as_free_disk(directory, corpus, tmp_path, monkeypatch):
    out = tmp_path / "c.safetensors"
    needs = plan_covariance(str(directory), [1], background=8)
    monkeypatch.setattr(Available, "measure", lambda *args: Available(10**12, 10**12, needs.disk_bytes - 1000))
    chosen = ("covariance", directory, "--texts", corpus / "a.txt", "--layers", "1", "--out", out, "--background", 8)
    refused("of disk", *chosen, "--device", "cpu")
    unfinished_path(out).write_bytes(bytes(1000))
    assert call(*chosen, "--device", "cpu").exit_code == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["c.safetensors"]


def test_a_model_is_spread_over_devices_where_that_is_asked(directory, corpus, tmp_path, monkeypatch):
    """On this machine it all goes to the CPU; more than one device's memory is not refused."""
    monkeypatch.setattr(Available, "measure", lambda *args: Available(0, 0, 0))
    whole, spread = tmp_path / "whole", tmp_path / "spread"
    chosen = ("covariance", directory, "--texts", corpus / "a.txt", "--layers", "1,3")
    assert call(*chosen, "--out", spread, "--device-map", "auto").exit_code == 0
    monkeypatch.undo()
    assert call(*chosen, "--out", whole).exit_code == 0
    assert spread.read_bytes() == whole.read_bytes()


def test_a_model_is_spread_where_the_environment_says_so(directory, corpus, tmp_path, monkeypatch):
    """As the study does for a model with a `device_map`, whose stage in dvc.yaml cannot name it."""
    asked = []

    def load(directory, device, device_map, *rest):
        asked.append(device_map)
        return load_base_model(directory, device, device_map, *rest)

    monkeypatch.setattr("coachhook.loading.load_base_model", load)
    texts = ("--texts", corpus / "a.txt", "--layers", "1,3")
    for value, expected in (("auto", "auto"), ("", None)):
        monkeypatch.setenv("COACHHOOK_DEVICE_MAP", value)
        out = tmp_path / f"{value}.safetensors"
        assert call("covariance", directory, *texts, "--out", out).exit_code == 0
        assert asked.pop() == expected
    assert (tmp_path / "auto.safetensors").read_bytes() == (tmp_path / ".safetensors").read_bytes()
