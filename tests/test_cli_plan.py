import json
import re

import pytest
from conftest import build_model
from typer.testing import CliRunner

from coachhook.cli import app
from coachhook.needs import Available, size
from coachhook.preflight import plan_covariance, plan_stream, plan_training


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
    covariance, stream, end = result.stdout.split("\n\n")
    assert covariance.startswith(f"Covariance of {directory}, layers 1, 2\n")
    assert stream.startswith(f"Coachhook-leverage on {directory}, 50 edits in batches of 30\n")
    assert end == "Each of these fits on this machine.\n"
    for job in (covariance, stream):
        for words in (
            r"^  memory  needs [\d.]+ MB, [\d.]+ GB are free on cpu$",
            r"^  disk    needs [\d.]+ (k|M)B, [\d.]+ (G|T)B are free$",
            r"^           100 MB  libraries$",
            r"^  text    [\d,]+ tokens go through the model$",
            r"^  time    about \d+ (second|minute|hour|day)s, judged by a short trial on cpu$",
        ):
            assert re.search(words, job, re.MULTILINE), (words, job)


def test_what_is_listed_adds_up_to_what_is_needed(directory):
    options = ("--layers", "1", "--trial-seconds", 0, "--device", "cpu")
    told = json.loads(call(directory, *options, "--json").stdout)
    for job in ("covariance", "stream"):
        assert sum(told[job]["parts"].values()) == told[job]["memory_bytes"]
        assert sum(told[job]["disk_parts"].values()) == told[job]["disk_bytes"]
        assert all(
            f"{size(count):>17}  {name}\n" in call(directory, *options).stdout
            for name, count in told[job]["parts"].items()
        )


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
    result = call(directory, "--trial-seconds", 0)
    assert result.stdout.startswith(f"Covariance of {directory}, layers 1, 2\n")
    assert "The layers are a suggestion (see docs/models.md); name your own with --layers.\n" in result.stdout
    assert "suggestion" not in call(directory, "--trial-seconds", 0, "--layers", "1").stdout


def test_a_method_without_covariance_has_none(directory):
    options = ("--layers", "2", "--method", "ft-m")
    result = call(directory, *options, "--trial-seconds", 0, "--json")
    assert set(json.loads(result.stdout)) == {"stream", "available"}
    result = call(directory, *options, "--trial-seconds", 0.1)
    assert "  time    not known: it depends on the edits\n" in result.stdout


@pytest.mark.parametrize(
    ("method", "time"), [("mend", r"about \d+"), ("serac", "not known: a trial of the model does not")]
)
def test_a_trained_method_is_planned_with_its_training(directory, method, time):
    options = ("--layers", "1,2", "--method", method, "--prompt-tokens", 16)
    told = json.loads(call(directory, *options, "--trial-seconds", 0, "--device", "cpu", "--json").stdout)
    assert set(told) == {"training", "stream", "available"}
    assert told["training"]["parts"] == plan_training(str(directory), method, (1, 2), prompt_tokens=16).parts
    shown = call(directory, *options, "--trial-seconds", 0.3).stdout
    assert re.search(
        rf"^Training {method} for {directory}, 100000 steps\n(  .*\n)*  time    {time}", shown, re.MULTILINE
    )


def test_what_cannot_fit_is_told_and_fails(directory, monkeypatch):
    monkeypatch.setattr(Available, "measure", lambda *args: Available(10**6, 10**6, 10**12))
    result = call(directory, "--layers", "1,2", "--device", "cpu")
    assert result.exit_code == 1
    assert "  memory  needs 1" in result.stdout
    assert "  time    not known: what does not fit is not tried\n" in result.stdout
    assert "fits" not in result.stdout
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
