import inspect
import json
import re
import subprocess
import sys

import pytest
from conftest import TEXT, build_model
from families import STARCODER, starcoder
from typer.main import get_command
from typer.testing import CliRunner

import coachhook
from coachhook import methods
from coachhook.cli import app
from coachhook.covariance import read_covariance
from coachhook.editors import METHODS
from coachhook.hyperparameters import hyperparameters


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("model")
    build_model("gpt2").save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "text.txt").write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return path


def test_methods_are_listed():
    result = call("methods")
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["method", "acts", "needs", "paper"]
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == list(methods())
    for name, told in zip(methods(), json.loads(call("methods", "--json").stdout), strict=True):
        method = METHODS[name].load()
        assert (told["name"], told["effect"], told["paper"]) == (name, method.effect, method.paper)
        assert told["needs_covariance"] == method.needs_covariance
        assert told["needs_training"] == (name in ("mend", "serac"))


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, coachhook.cli; print({'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_each_command_says_what_it_does_with_an_example():
    told = call("--help")
    assert told.exit_code == 0
    assert "Exit status: 0 done; 1 a mistake" in told.stdout
    commands = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert set(commands) == {
        *("edit", "generate", "diff", "evaluate", "inspect", "rollback"),
        *("covariance", "plan", "methods", "verify"),
    }
    for command in commands:
        assert re.search(rf"^│ {command} ", told.stdout, re.MULTILINE)
        told_more = call(command, "--help")
        assert told_more.exit_code == 0
        assert f"  coachhook {command}" in told_more.stdout


def test_help_fits_a_terminal_of_80_columns_so_that_examples_can_be_copied():
    """Lines of a docstring that are wrapped again lose their backslash."""
    group = get_command(app)
    for command, name in ((group, ""), *((command, name) for name, command in group.commands.items())):
        told = CliRunner().invoke(app, [*filter(None, [name]), "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
        shown = [line.rstrip() for line in told.stdout.splitlines()]
        for line in inspect.cleandoc(command.callback.__doc__).splitlines():
            assert f" {line}".rstrip().replace("`", "") in [line.replace("`", "") for line in shown], (name, line)


def test_it_says_its_version():
    assert call("--version").stdout == f"coachhook {coachhook.__version__}\n"


@pytest.mark.parametrize("method", methods())
def test_the_hyperparameters_of_a_method_are_listed(method):
    config = METHODS[method].load().config_class
    rows = json.loads(call("methods", method, "--json").stdout)
    assert [row["name"] for row in rows] == list(config.model_fields)
    given = {row["name"]: row["default"] for row in rows if not row["required"]}
    needed = {row["name"]: [1] for row in rows if row["required"]}
    made = config(**{**needed, **METHODS[method].preset})
    assert given == {name: json.loads(made.model_dump_json())[name] for name in given}
    shown = call("methods", method).stdout
    for row in rows:
        assert re.search(rf"^{row['name']} +{re.escape(row['allowed'].split()[0])}", shown, re.MULTILINE)
        assert row["description"].split()[0] in shown


@pytest.mark.parametrize(
    ("method", "name", "allowed", "default"),
    [
        ("wise", "margins", "list of 3 numbers", "[5.0, 20.0, 10.0]"),
        ("coachhook", "gate", "paper or leverage or off", "paper"),
        ("memit", "past_weight", "number ≥ 0 or lambda", "0"),
        ("coachhook-leverage", "false_positive_rate", "number > 0 and < 1 or null", "0.05"),
        ("wise", "retrieve", "true or false", "false"),
        ("memit", "layers", "list of integers", "none"),
        ("rome", "context_templates", "integer or list of texts", "5"),
    ],
)
def test_values_are_told_in_words(method, name, allowed, default):
    (found,) = [one for one in hyperparameters(method) if one.name == name]
    assert (found.allowed, found.told_default()) == (allowed, default)


def test_hyperparameters_of_an_unknown_method_are_refused():
    told = call("methods", "mmeit")
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.startswith("error: method: 'mmeit' is unknown; use one of coachhook, ")


def test_a_covariance_is_computed_from_a_text_file(directory, tokenizer, tmp_path):
    out = tmp_path / "c.safetensors"
    limits = ("--max-tokens", 50, "--background", 8, "--layers", "1,3")
    result = call("covariance", directory, "--texts", directory / "text.txt", "--out", out, *limits)
    assert result.exit_code == 0, result.output
    covariance = read_covariance(out, build_model("gpt2"), (1, 3))
    assert covariance.tokens == 50
    assert covariance.background[3].shape == (8, 48)


@pytest.mark.parametrize(
    ("layers", "texts", "words"),
    [
        ("one", "text.txt", "error: --layers: 'one' is not a list of numbers such as 13,14,15"),
        ("1,9", "text.txt", "error: layers: 9 does not exist, the model has layers 0 to 4"),
        ("1", "none.txt", "none.txt is not a file"),
        ("1", "empty.txt", "error: texts: there is no text"),
    ],
)
def test_what_the_user_can_mend_is_one_line(directory, tmp_path, layers, texts, words):
    (directory / "empty.txt").write_text("")
    out = tmp_path / "c.safetensors"
    result = call("covariance", directory, "--texts", directory / texts, "--out", out, "--layers", layers)
    assert result.exit_code == 1
    assert words in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.output
    assert not out.exists()


def test_a_covariance_of_a_declared_family(tokenizer, tmp_path):
    starcoder().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    arguments = ("covariance", tmp_path, "--texts", tmp_path / "text.txt", "--out", tmp_path / "c", "--layers", "1")
    result = call(*arguments)
    assert result.exit_code == 1
    assert "error: model type 'starcoder2' is unknown" in result.stderr.strip().splitlines()[-1]
    declared = ",".join(f"{part}={name}" for part, name in STARCODER.items())
    result = call(*arguments, "--architecture", declared)
    assert result.exit_code == 0, result.output
    assert read_covariance(tmp_path / "c").matrices[1].shape == (48, 48)
    result = call(*arguments, "--architecture", "blocks")
    assert "error: architecture: " in result.stderr.strip().splitlines()[-1]
