import json

import pytest
from conftest import build_model
from typer.testing import CliRunner

from coachhook.cli import app
from coachhook.needs import Available
from coachhook.preflight import plan_covariance, plan_stream


def call(*args):
    return CliRunner().invoke(app, ["plan", *(str(arg) for arg in args)])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build_model("gpt2").config.save_pretrained(path)
    return path


def test_a_plan_needs_the_configuration_only(directory):
    result = call(directory, "--layers", "1,2", "--edits", 50, "--trial-seconds", 0.3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"covariance of {directory}, layers 1, 2"
    assert lines[5] == f"coachhook on {directory}, 50 edits in batches of 30"
    for start in (1, 6):
        assert [line.split()[0] for line in lines[start : start + 4]] == ["memory", "disk", "tokens", "time"]
        assert "free on cpu: " in lines[start]
        assert "about " in lines[start + 3]


def test_json_is_what_the_library_plans(directory):
    options = ("--layers", "1,2", "--method", "memit", "--edits", 50, "--batch-size", 5, "--dtype", "bfloat16")
    result = call(directory, *options, "--max-tokens", 5000, "--trial-seconds", 0, "--device", "cpu", "--json")
    told = json.loads(result.stdout)
    stream = plan_stream(str(directory), "memit", (1, 2), edits=50, batch_size=5, dtype="bfloat16")
    assert told["stream"]["memory_bytes"] == stream.memory_bytes
    assert told["stream"]["parts"] == stream.parts
    assert told["stream"]["seconds"] is None
    covariance = plan_covariance(str(directory), (1, 2), max_tokens=5000, dtype="bfloat16")
    assert told["covariance"]["parts"] == covariance.parts
    assert set(told["available"]) == {"memory_bytes", "host_bytes", "disk_bytes"}


def test_layers_are_suggested_where_none_are_given(directory):
    assert call(directory, "--trial-seconds", 0).stdout.startswith(f"covariance of {directory}, layers 1, 2\n")


def test_a_method_without_covariance_has_none(directory):
    result = call(directory, "--layers", "2", "--method", "ft-m", "--trial-seconds", 0, "--json")
    assert set(json.loads(result.stdout)) == {"stream", "available"}


def test_what_cannot_fit_is_told_and_fails(directory, monkeypatch):
    monkeypatch.setattr(Available, "measure", lambda *args: Available(10**6, 10**6, 10**12))
    result = call(directory, "--layers", "1,2", "--device", "cpu")
    assert result.exit_code == 1
    assert "  memory " in result.stdout
    assert "  time    not known" in result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: covariance of ")
    assert "1 MB are free" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layers", "1,x"), "--layers: '1,x' is not a list"),
        (("--layers", "7"), "layers: 7 does not exist, the model has layers 0 to 4"),
        (("--layers", "1", "--method", "best"), "method: 'best' is unknown"),
        (("--layers", "1", "--dtype", "float7"), "dtype: 'float7' is unknown"),
    ],
)
def test_what_the_user_can_mend_is_one_line(directory, options, words):
    result = call(directory, *options, "--trial-seconds", 0)
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: {words}")


def test_an_unknown_model_is_one_line(tmp_path):
    result = call(tmp_path, "--layers", "1")
    assert result.exit_code == 1
    assert "configuration cannot be read" in result.stderr
    assert "Traceback" not in result.output
