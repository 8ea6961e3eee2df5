"""The commands that look at a directory of edits, and the page that says what they print."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEXT
from edited_folder import SET, call, contents, done, make_folder, refused

from coachhook import Editor
from coachhook.continuations import continuations
from coachhook.gate_firing import gate_firing

PAGE = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text(encoding="utf-8")
PROMPTS = ["Ada Lovelace was born in", "The capital of France is"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer, covariances, requests):
    """Two steps of three requests, with the default method."""
    folder = make_folder(tmp_path_factory.mktemp("edited"), tokenizer, covariances, requests)
    files = ("--requests", folder / "all.json", "--covariance", folder.covariance, "--out", folder / "edits")
    done("edit", folder.model, *files, *SET, "--batch-size", 3)
    return folder


@pytest.fixture
def editor(made):
    editor = Editor.from_pretrained(made / "edits")
    yield editor
    editor.close()


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made / "edits", tmp_path / "edits")


def test_generate_goes_on_from_each_prompt(made, editor):
    wanted = list(continuations(editor.model, editor.tokenizer, PROMPTS, 8))
    assert done("generate", made / "edits", *PROMPTS, "--max-tokens", 8) == "".join(
        f"{prompt}{text}\n" for prompt, text in zip(PROMPTS, wanted, strict=True)
    )
    told = json.loads(done("generate", made / "edits", *PROMPTS, "--max-tokens", 8, "--step", 1, "--json"))
    editor.rollback(1)
    wanted = list(continuations(editor.model, editor.tokenizer, PROMPTS, 8))
    assert (told["step"], [row["continuation"] for row in told["prompts"]]) == (1, wanted)


def test_diff_shows_base_and_edited_side_by_side(made, editor):
    prompts = [request.text for step in editor.journal for request in step.requests]
    with editor.disabled():
        base = list(continuations(editor.model, editor.tokenizer, prompts, 5))
    edited = list(continuations(editor.model, editor.tokenizer, prompts, 5))
    told = json.loads(done("diff", made / "edits", *prompts, "--max-tokens", 5, "--json"))
    assert [(row["base"], row["edited"]) for row in told["prompts"]] == list(zip(base, edited, strict=True))
    assert base != edited
    shown = done("diff", made / "edits", "--max-tokens", 5)
    assert re.match(r"prompt +base model +edited model\n", shown)
    assert all(request.text in shown for request in editor.journal[-1].requests)
    assert re.search(r"\d of 3 prompts go on differently", shown)
    assert "0 of 3" in done("diff", made / "edits", *PROMPTS, PROMPTS[0], "--max-tokens", 5, "--step", 0)


@pytest.mark.parametrize("protocol", ["easyedit", "rome", "generate"])
def test_evaluate_shows_what_the_library_finds(made, editor, protocol):
    command = ("evaluate", made / "edits", "--requests", made / "all.json", "--protocol", protocol)
    told = json.loads(done(*command, "--json"))
    requests = [request for step in editor.journal for request in step.requests]
    assert told["edited"] == editor.evaluate(requests, protocol).row()
    with editor.disabled():
        assert told["base"] == editor.evaluate(requests, protocol).row()
    assert (told["requests"], told["protocol"], told["step"]) == (6, protocol, 2)
    shown = done(*command)
    assert shown.startswith(f"6 requests at step 2 (protocol {protocol}, in percent)")
    if protocol == "rome":
        assert "Not scored, without a true answer: 6 requests." in shown
    else:
        assert re.search(rf"reliability +\S+ +{100 * told['edited']['reliability']:.1f} ", shown)


def test_rollback_keeps_the_first_steps_alone(copy, editor, requests):
    told = done("rollback", copy, "--to", 1)
    assert "is at step 1, " in told
    assert "; step 2 removed." in told
    rolled = Editor.from_pretrained(copy)
    assert rolled.journal[0].requests == editor.journal[0].requests
    rolled.save_pretrained(copy.parent / "again")
    assert contents(copy) == contents(copy.parent / "again")
    assert json.loads(done("rollback", copy, "--to", 0, "--json"))["removed_steps"] == 1
    assert not list(copy.glob("0*.safetensors"))
    assert Editor.from_pretrained(copy).step == 0
    assert "no step removed" in done("rollback", copy, "--to", 0)


def test_inspect_shows_steps_thresholds_and_sizes_without_a_model(copy, editor, made, monkeypatch):
    monkeypatch.setattr(Editor, "from_pretrained", None)
    told = json.loads(done("inspect", copy, "--json"))
    assert told["bytes"] == sum(len(content) for content in contents(copy).values())
    assert told["gate_firing"] is None
    assert [(step["step"], step["requests"], step["time"]) for step in told["steps"]] == [
        (number, 3, step.time) for number, step in enumerate(editor.journal, 1)
    ]
    thresholds = {str(layer): alpha for layer, alpha in editor.thresholds().items()}
    assert told["steps"][-1]["thresholds"] == {"tau": thresholds}
    shown = done("inspect", copy)
    assert "6 requests in 2 steps, " in shown
    assert "coachhook-leverage, gate leverage, layers 1, 2" in shown
    assert "  ".join(f"{alpha:.3g}" for alpha in thresholds.values()) in shown
    shown = done("inspect", copy, "--step", 2)
    assert all(request.text in shown and request.target_new in shown for request in editor.journal[1].requests)
    assert json.loads(done("inspect", copy, "--step", 2, "--json"))["requests"][0]["subject"] == "France"


def test_inspect_shows_the_thresholds_of_the_papers_gate(made, tmp_path):
    files = ("--requests", made / "all.json", "--covariance", made.covariance, "--out", tmp_path / "edits")
    done("edit", made.model, *files, *SET, "--method", "coachhook", "--set", "alpha=1.2", "--batch-size", 3)
    editor = Editor.from_pretrained(tmp_path / "edits")
    last = {str(layer): alpha for layer, alpha in editor.thresholds().items()}
    steps = json.loads(done("inspect", tmp_path / "edits", "--json"))["steps"]
    assert [list(step["thresholds"]) for step in steps] == [["alpha"], ["alpha"]]
    assert steps[-1]["thresholds"]["alpha"] == last
    shown = done("inspect", tmp_path / "edits")
    assert "coachhook, gate paper, layers 1, 2" in shown
    assert "α by layer" in shown
    assert "  ".join(f"{alpha:.3g}" for alpha in last.values()) in shown


def test_inspect_says_how_often_each_gate_fires(made, editor):
    told = json.loads(done("inspect", made / "edits", "--texts", made.texts, "--json"))
    wanted = gate_firing(editor, TEXT)
    assert [(layer["layer"], layer["rate"]) for layer in told["gate_firing"]] == [(w.layer, w.rate) for w in wanted]
    shown = done("inspect", made / "edits", "--texts", made.texts)
    assert f"On 5 texts of {wanted[0].tokens} tokens" in shown
    for layer in wanted:
        assert re.search(rf"^ *{layer.layer} +{100 * layer.rate:.1f} ", shown, re.MULTILINE)


def test_what_the_user_can_mend_is_one_line(made, copy, tmp_path):
    nowhere, edits = tmp_path / "nowhere", made / "edits"
    for command, *more in (("generate", "x"), ("diff",), ("inspect",), ("rollback", "--to", 1)):
        refused("edits.json: no such file", command, nowhere, *more)
    for command in (("rollback", edits, "--to"), ("generate", edits, "x", "--step"), ("inspect", edits, "--step")):
        refused("step: 3 is not between 0 and 2, the steps saved in", *command, 3)
    refused("prompt 1: 0 tokens", "generate", edits, "")
    refused("--device: gpu cannot be used", "generate", edits, "x", "--device", "gpu")
    refused("protocol 'best' is unknown", "evaluate", edits, "--requests", made / "all.json", "--protocol", "best")
    refused("--requests: ", "evaluate", edits, "--requests", nowhere)
    refused("--texts: nowhere is not a file or a folder", "inspect", edits, "--texts", "nowhere")
    refused(
        "give the model itself, or name it (base=, on the command line --base)",
        "generate",
        edits,
        "x",
        "--base",
        nowhere,
    )
    (tokenizer,) = copy.glob("tokenizer-*/tokenizer.json")
    tokenizer.write_text("")
    refused(f"{tokenizer.parent.name}: missing or damaged", "inspect", copy)
    refused(f"{tokenizer.parent.name}: missing or damaged", "generate", copy, "x")
    (copy / "edits.json").write_text("{")
    refused("edits.json: damaged", "inspect", copy)
    assert call("rollback", edits, "--to", -1).exit_code == 2
    assert call("generate", edits).exit_code == 2


def test_a_base_model_that_has_moved_is_named(made, tmp_path):
    moved = shutil.copytree(made.model, tmp_path / "moved")
    told = done("generate", made / "edits", *PROMPTS, "--base", moved)
    assert told == done("generate", made / "edits", *PROMPTS)


def test_the_page_lists_the_keys_of_each_commands_json(made, copy):
    commands = {
        "edit": (*made.edit(made.model, 1, copy.parent / "new"), "--json"),
        "edit --dry-run": made.edit(made.model, 1, None, "--dry-run", "--max-drop", 100, "--json"),
        "generate": ("generate", made / "edits", "x", "--json"),
        "diff": ("diff", made / "edits", "x", "--json"),
        "evaluate": ("evaluate", made / "edits", "--requests", made.week(1), "--json"),
        "inspect": ("inspect", made / "edits", "--json"),
        "rollback": ("rollback", copy, "--to", 1, "--json"),
    }
    rows = re.findall(r"^\| `(.*?)` \| (.*?) \|$", PAGE, re.MULTILINE)
    told = {command: re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", keys)) for command, keys in rows}
    for command, arguments in commands.items():
        assert list(json.loads(done(*arguments))) == told[command], command


def test_the_installed_command_in_a_process_of_its_own(made):
    command = Path(sys.executable).parent / "coachhook"
    run = subprocess.run([command, "inspect", made / "edits", "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["step"] == 2
    assert run.stderr == ""
    run = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "Usage: coachhook [OPTIONS] COMMAND" in run.stdout


def test_tables_are_100_columns_wide_in_a_file_and_prompts_are_never_markup(made, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown = done("diff", made / "edits", "The [bold]capital[/bold] :smile: of France is not far from", *PROMPTS)
    assert max(map(len, shown.splitlines())) > 60
    assert "[bold]" in shown
    assert ":smile:" in shown
