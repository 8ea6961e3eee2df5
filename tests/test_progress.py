"""Long work says how far it is: to a function of the caller's, as a bar on a terminal, as lines in a log."""

import os
import pty
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import TEXT, build_model
from edited_folder import SET, make_folder
from test_ordinary_model import edit

from coachhook.cli import console
from coachhook.covariance import compute_covariance
from coachhook.gate_firing import gate_firing
from coachhook.progress import shown_by, tell
from coachhook.what_if import what_if


def heard(act):
    """What is said while `act` runs: per kind of work, (done, total) in order."""
    found = defaultdict(list)
    with shown_by(lambda what, done, total: found[what].append((done, total))):
        act()
    tell("nothing", 1, 2)  # nobody listens any more
    return dict(found)


def rises(steps, total):
    done = [at for at, of in steps]
    return done == sorted(done) and {of for _, of in steps} == {total} and len(set(done)) > 1


def test_the_library_says_how_far_it_is(tokenizer, requests, covariances):
    model = build_model("gpt2")
    said = heard(lambda: compute_covariance(model, tokenizer, TEXT * 3, [1], max_tokens=90, batch_tokens=32))
    assert rises(said["counting keys, at most"], 90)
    editors = []
    said = heard(lambda: editors.append(edit("coachhook-leverage", model, tokenizer, requests, covariances)))
    assert rises(said["finding targets"], editors[0].config.target_steps)
    said = heard(lambda: editors[0].evaluate(requests))
    assert said["asking"][-1][0] == said["asking"][-1][1] > len(requests)
    said = heard(lambda: gate_firing(editors[0], TEXT))
    assert said == {"reading texts": [(len(TEXT), len(TEXT))]}
    said = heard(lambda: what_if(editors[0], [requests[:1]], texts=TEXT))
    assert rises(said["reading texts"][: len(TEXT)], len(TEXT))


@pytest.mark.parametrize(("method", "what"), [("ft-m", "training"), ("wise", "training"), ("grace", "finding values")])
def test_methods_that_train_say_so(method, what, tokenizer, requests, covariances):
    said = heard(lambda: edit(method, build_model("gpt2"), tokenizer, requests, covariances))
    assert rises(said[what][:2], said[what][0][1])


def test_a_log_has_a_line_now_and_then(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO"), console.progress("editing", 3, every=0) as advance, console.working(every=10):
        for second in range(0, 25, 5):
            now[0] = second
            tell("asking", second, 20)
        advance()
    assert [record.getMessage() for record in caplog.records] == [
        "asking: 10 of 20, 10 s",
        "asking: 20 of 20, 20 s",
        "editing: 1 of 3, 20 s",
    ]


def test_a_terminal_has_a_bar_for_the_steps_and_one_for_the_work_at_hand(tmp_path, tokenizer, covariances, requests):
    folder = make_folder(tmp_path, tokenizer, covariances, requests)
    files = ("--requests", folder / "all.json", "--covariance", folder.covariance, "--out", folder / "edits")
    settings = [word.replace("target_steps=3", "target_steps=100") for word in SET]
    words = ("edit", folder.model, *files, *settings, "--batch-size", 6)
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "TERM": "xterm", "COLUMNS": "90"}
    command = [sys.executable, "-c", "from coachhook.cli import app; app()", *map(str, words)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    assert b"is at step 1" in run.communicate()[0]
    assert run.returncode == 0
    text = shown.decode()
    assert re.search(r"editing .*0/1", text)
    assert re.search(r"finding targets .*\d+/100", text)
