import inspect
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from edited_folder import SET, call, contents, done, make_folder, refused
from test_editors import logits
from transformers import AutoModelForCausalLM

from coachhook import Editor, read_requests
from coachhook.cli.edit_choice import DEFAULT_METHOD
from coachhook.cli.shared import only_writer
from coachhook.requests import write_requests

OPTIONS = {
    "covariance_weight": 2,
    "context_templates": 1,
    "context_length": 3,
    "target_steps": 3,
    "target_lr": 0.5,
}


@pytest.fixture
def folder(tmp_path, tokenizer, covariances, requests):
    return make_folder(tmp_path, tokenizer, covariances, requests)


def library_editor(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder.model)
    return Editor(model, tokenizer, "memit", folder.covariance, **OPTIONS)


def outputs(directory, tokenizer, requests):
    editor = Editor.from_pretrained(directory)
    return editor.step, logits(editor.model, tokenizer, requests)


def test_weeks_go_on_top_of_each_other_as_in_the_library(folder, tokenizer, requests):
    base = contents(folder.model)
    told = done(*folder.edit(folder.model, 1, folder / "edits"))
    assert told.startswith("2 requests edited in 1 step, ")
    assert "edits is at step 1, " in told
    assert "step   reliability   generality   locality" in told
    done(*folder.edit(folder / "edits", 2, folder / "edits", "--batch-size", 1))
    done(*folder.edit(folder / "edits", 3, folder / "more"))
    editor = library_editor(folder, tokenizer)
    for batch in (requests[:2], requests[2:3], requests[3:4]):
        editor.edit(batch)
    step, found = outputs(folder / "edits", tokenizer, requests)
    assert step == 3
    assert torch.equal(found, logits(editor.model, tokenizer, requests))
    editor.edit(requests[4:])
    (measured,) = Editor.from_pretrained(folder / "more").journal[-1].metrics.values()
    assert measured == editor.evaluate(requests[4:]).row()
    step, found = outputs(folder / "more", tokenizer, requests)
    assert step == 4
    assert torch.equal(found, logits(editor.model, tokenizer, requests))
    assert contents(folder.model) == base


def test_json_says_what_was_done(folder):
    told = json.loads(done(*folder.edit(folder.model, 1, folder / "edits", "--batch-size", 1, "--json")))
    assert told["step"] == 2
    assert [(step["step"], step["requests"]) for step in told["steps"]] == [(1, 1), (2, 1)]
    journal = Editor.from_pretrained(folder / "edits").journal
    assert [{"easyedit": step["metrics"]} for step in told["steps"]] == [step.metrics for step in journal]
    assert told["bytes"] == sum(len(content) for content in contents(folder / "edits").values())


def test_a_log_has_a_line_for_each_step(folder, caplog):
    caplog.set_level("INFO")
    done(*folder.edit(folder.model, 1, folder / "edits", "--batch-size", 1))
    lines = [record.getMessage() for record in caplog.records if "editing" in record.getMessage()]
    assert [line.rpartition(",")[0] for line in lines] == ["editing: 1 of 2", "editing: 2 of 2"]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_command_that_was_killed_goes_on_where_it_was(folder, tokenizer, requests, monkeypatch, in_place):
    start = folder.model
    if in_place:
        write_requests([replace(requests[0], target_new="Rome")], folder.week(9))
        done(*folder.edit(folder.model, 9, folder / "edits"))
        start = folder / "edits"
    command = folder.edit(start, 1, folder / "edits", "--batch-size", 1)
    edit, calls = Editor.edit, []

    def killed_at_two(editor, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return edit(editor, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Editor, "edit", killed_at_two)
        assert call(*command).exit_code != 0
    first = contents(folder / "edits")
    assert Editor.from_pretrained(folder / "edits").step == 1 + in_place
    done(*command)
    whole = outputs(folder / "edits", tokenizer, requests)
    assert whole[0] == 2 + in_place
    assert {name for name in first if name != "edits.json"} < set(contents(folder / "edits"))
    assert "Nothing to do" in done(*command)
    if not in_place:
        done(*folder.edit(start, 1, folder / "unbroken", "--batch-size", 1))
        assert torch.equal(whole[1], outputs(folder / "unbroken", tokenizer, requests)[1])


def test_contradictions_with_earlier_steps_are_named(folder, requests, caplog):
    caplog.set_level("INFO")
    done(*folder.edit(folder.model, 1, folder / "edits"))
    write_requests([replace(requests[0], target_new="Oslo")], folder.week(9))
    trial = folder.edit(folder / "edits", 9, None, "--dry-run", "--max-drop", 100)
    (told,) = json.loads(done(*trial, "--json"))["contradictions"]
    assert told == {
        "step": 2,
        "prompt": "Ada Lovelace was born in",
        "target_new": "Oslo",
        "earlier_step": 1,
        "earlier_prompt": "Ada Lovelace was born in",
        "earlier_target_new": "Paris",
    }
    shown = done(*trial)
    assert "\nContradictions\n\n  'Ada Lovelace was born in': step 2 says 'Oslo' where step 1 said 'Paris'\n" in shown
    assert shown.startswith("What 1 request would do on top of step 1")
    done(*folder.edit(folder / "edits", 9, folder / "edits"))
    assert "contradiction: 'Ada Lovelace was born in': step 2 says 'Oslo' where step 1 said 'Paris'" in caplog.text


def test_methods_without_covariance_and_settings_of_every_kind(folder):
    files = ("edit", folder.model, "--requests", folder.week(1), "--out", folder / "ft")
    done(*files, "--method", "ft-m", "--layers", "2", "--set", "steps=2", "--set", "learning_rate=1e-3")
    saved = json.loads((folder / "ft" / "edits.json").read_text())
    assert (saved["method"], saved["layers"], saved["hyperparameters"]["steps"]) == ("ft-m", [2], 2)


def test_a_dry_run_says_what_would_change_and_writes_nothing(folder, tokenizer, requests):
    done(*folder.edit(folder.model, 1, folder / "edits"))
    done(*folder.edit(folder / "edits", 2, folder / "edits"))
    before = contents(folder.path)
    trial = folder.edit(folder / "edits", 3, None, "--dry-run", "--texts", folder.texts)
    result = call(*trial)
    assert result.exit_code == 3, result.output
    assert result.stdout.startswith("What 2 requests would do on top of step 2 (protocol easyedit, in percent)")
    assert "3 new" in result.stdout
    assert "Prompts that lose most" in result.stdout
    assert "Worse by more than 5 points: " in result.stdout
    assert call(*trial, "--max-drop", 100).exit_code == 0
    result = call(*trial, "--json")
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert [(batch["step"], batch["new"]) for batch in told["batches"]] == [(1, False), (2, False), (3, True)]
    editor, weeks = library_editor(folder, tokenizer), (requests[:2], requests[2:4], requests[4:])
    for week in weeks:
        editor.edit(week)
    for batch, of_batch in zip(told["batches"], weeks, strict=True):
        assert batch["after"] == editor.evaluate(of_batch).row()
    assert contents(folder.path) == before


def test_a_dry_run_on_a_base_model(folder):
    result = call(*folder.edit(folder.model, 1, None, "--dry-run", "--max-drop", 100, "--batch-size", 1))
    assert result.exit_code == 0, result.output
    assert "No number falls by more than 100 points. Nothing was written" in result.stdout


def test_what_the_user_can_mend_is_one_line_and_nothing_is_written(folder, requests):
    done(*folder.edit(folder.model, 1, folder / "edits"))
    before = contents(folder.path)
    model, edits, new = folder.model, folder / "edits", folder / "new"
    start = ("edit", model, "--requests", folder.week(1), "--out", new)
    refused(
        "--covariance: method coachhook-leverage needs one; make it once per model with `coachhook covariance`", *start
    )
    covered = (*start, "--covariance", folder.covariance)
    refused("method: 'best' is unknown; use one of coachhook,", *covered, "--method", "best")
    refused("alhpa: extra inputs are not permitted", *covered, "--set", "alhpa=2")
    refused("--set: 'alpha' is not NAME=VALUE", *covered, "--set", "alpha")
    refused("--set: alpha is given twice", *covered, "--set", "alpha=2", "--set", "alpha=3")
    refused("target_steps: input should be a valid integer", *covered, "--set", "target_steps=many")
    refused("--layers: 'a,b' is not a list", *covered, "--layers", "a,b")
    refused("layers: field required (method ft-m); suggested_layers", *start, "--method", "ft-m")
    refused("trained_editor: method mend needs one", *start, "--method", "mend", "--layers", "1")
    refused(f"MODEL: {folder / 'nope'} cannot be loaded", *folder.edit(folder / "nope", 1, new))
    refused("--base: ", *covered, "--base", model)
    refused("--requests: ", "edit", model, "--requests", folder / "none.json", "--out", new)
    refused("--out: ", *folder.edit(model, 2, edits))
    refused("to go on top of them, give", *folder.edit(model, 2, edits))
    refused("is there and holds no edits; name a new directory", *folder.edit(model, 1, model))
    refused("is there and holds no edits", *folder.edit(model, 1, folder.texts))
    refused("was edited with 'memit', not 'rome'", *folder.edit(edits, 2, edits, "--method", "rome"))
    refused("was edited with 3, not 9", *folder.edit(edits, 2, edits, "--set", "target_steps=9"))
    refused("alpah: method memit has no such", *folder.edit(edits, 2, edits, "--set", "alpah=9"))
    refused("--dtype, --architecture: ", *folder.edit(edits, 2, edits, "--dtype", "float16"))
    refused("protocol 'best' is unknown", *folder.edit(edits, 2, None, "--dry-run", "--protocol", "best"))
    refused("--texts: nowhere is not a file", *folder.edit(edits, 2, None, "--dry-run", "--texts", "nowhere"))
    refused("nowhere cannot be loaded", *folder.edit(edits, 2, edits, "--base", folder / "nowhere"))
    refused("--protocol: rome can score none", *folder.edit(edits, 2, None, "--dry-run", "--protocol", "rome"))
    assert contents(folder.path) == before


def test_a_sample_without_text_is_refused(folder):
    empty = folder / "empty.txt"
    empty.write_text("\n \n")
    refused(f"--texts: there is no text in {empty}", *folder.edit(folder.model, 1, None, "--dry-run", "--texts", empty))


def test_two_commands_on_one_directory_wait_for_each_other(folder, requests):
    done(*folder.edit(folder.model, 1, folder / "edits"))
    program = "import sys; from coachhook.cli import app; app(sys.argv[1:])"
    command = map(str, folder.edit(folder / "edits", 3, folder / "edits"))
    with only_writer(folder / "edits"):
        other = subprocess.Popen([sys.executable, "-c", program, *command], stderr=subprocess.PIPE, text=True)
        assert any("another process is at this work; waiting" in line for line in other.stderr)
        editor = Editor.from_pretrained(folder / "edits", covariance=folder.covariance)
        editor.edit(requests[2:4])
        editor.save_pretrained(folder / "edits")
    assert other.wait(300) == 0
    other.stderr.close()
    journal = Editor.from_pretrained(folder / "edits").journal
    assert [step.requests for step in journal] == [tuple(requests[start : start + 2]) for start in (0, 2, 4)]
    assert not list(folder.path.glob(".*lock"))


def test_the_default_method_is_the_librarys():
    assert inspect.signature(Editor).parameters["method"].default == DEFAULT_METHOD


def test_a_bad_record_is_named_with_its_file(folder, requests):
    long = replace(requests[1], prompt="{} " + "was born " * 40)
    write_requests([requests[0], long], folder.week(4))
    refused("week-4.json: record 2 (case_id 1): prompt: ", *folder.edit(folder.model, 4, folder / "new"))
    write_requests([requests[0], replace(requests[1], paraphrases=("Where " * 70 + "was {} born?",))], folder.week(7))
    refused("week-7.json: record 2", *folder.edit(folder.model, 7, folder / "new"))
    folder.week(5).write_text('[{"subject": "Ada", "prompt": "{} is"}]')
    refused("week-5.json: record 1: target_new", *folder.edit(folder.model, 5, folder / "new"))
    folder.week(6).write_text("[]")
    refused("week-6.json holds no requests", *folder.edit(folder.model, 6, folder / "new"))
    assert not (folder / "new").exists()


def test_a_command_that_is_incomplete_ends_with_2(folder):
    result = call(*folder.edit(folder.model, 1, None))
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr
    assert call("edit", folder.model).exit_code == 2
    for trial in (("--texts", folder.texts), ("--protocol", "rome")):
        assert call(*folder.edit(folder.model, 1, folder / "new", *trial)).exit_code == 2
    assert not (folder / "new").exists()
    assert call("edit", folder.model, "--requests", folder.week(1), "--batch-size", 0).exit_code == 2


def test_all_requests_are_one_step_unless_said_otherwise(folder):
    files = ("--requests", folder / "all.json", "--covariance", folder.covariance, "--out", folder / "edits")
    done("edit", folder.model, *files, "--method", "memit", *SET)
    assert [len(step.requests) for step in Editor.from_pretrained(folder / "edits").journal] == [6]
    assert [step.requests for step in Editor.from_pretrained(folder / "edits").journal] == [
        tuple(read_requests(folder / "all.json"))
    ]
