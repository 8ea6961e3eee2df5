"""Training of editors: killed at any moment it ends with the same bytes, and its file says what it is for."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import LAYERS, build_model
from safetensors import safe_open
from torch import nn

from coachhook.editors import training as training_module
from coachhook.editors.base import MethodConfig
from coachhook.editors.trained_editor import TrainedEditorError, read_trained_editor
from coachhook.editors.training import EditorTraining, Trainer, train_editor

CONFIG = MethodConfig(layers=LAYERS)
SETTINGS = {
    "steps": 12,
    "batch_size": 2,
    "accumulate": 2,
    "learning_rate": 0.05,
    "validation_share": 0.3,
    "validate_every": 3,
    "patience": 10,
}


class Killed(Exception):
    pass


class Lesson:
    """A loss that depends on the batch and on draws; may be killed at one of its calls."""

    def __init__(self, network, killed_at=None):
        self.network, self.killed_at, self.batches = network, killed_at, []

    def __call__(self, batch, rng):
        self.batches.append([request.case_id for request in batch])
        if len(self.batches) == self.killed_at:
            raise Killed
        inputs = torch.tensor([[request.case_id + rng.random(), rng.random(), 1.0] for request in batch])
        return (self.network(inputs) - 3).square().mean()


def build_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def train(folder, requests, killed_at=None, seed=0, **changes):
    """The bytes that a training, killed at one call of its loss, leaves; None where it was killed."""
    network, out = build_network(), folder / "editor.safetensors"
    lesson, training = Lesson(network, killed_at), EditorTraining(**(SETTINGS | changes))
    files = {"out": out, "checkpoint": folder / "checkpoint.safetensors", "seed": seed}
    try:
        train_editor("Toy", network, lesson, build_model("gpt2"), CONFIG, training, requests, **files)
    except Killed:
        assert not out.exists()
        return None
    return out.read_bytes()


@pytest.fixture(autouse=True)
def _checkpoint_after_every_step(monkeypatch):
    monkeypatch.setattr(training_module, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, requests):
    folder = tmp_path_factory.mktemp("unbroken")
    content = train(folder, requests)
    assert [path.name for path in folder.iterdir()] == ["editor.safetensors"]  # neither checkpoint nor temporary file
    return content


@pytest.mark.parametrize("killed_at", [1, 2, 5, 8, 14, 27])
def test_a_killed_training_ends_with_the_same_bytes(tmp_path, requests, unbroken, killed_at):
    assert train(tmp_path, requests, killed_at) is None
    assert train(tmp_path, requests, 3) is None or killed_at == 27  # and once more, soon after it went on
    assert train(tmp_path, requests) == unbroken


def test_a_checkpoint_saves_the_work_that_was_done(tmp_path, requests):
    train(tmp_path, requests, killed_at=20)
    lesson = Lesson(build_network())
    trainer = Trainer(lesson.network, lesson, requests, EditorTraining(**SETTINGS), 0)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        identity = re.search('"identity": "([0-9a-f]+)"', file.metadata()["coachhook"])[1]
    trainer.run(tmp_path / "checkpoint.safetensors", identity)
    assert len(lesson.batches) < 15


KILL = """
import os, signal, sys
sys.path[:0] = [sys.argv[1]]
import test_training as t
from pathlib import Path
from conftest import *
t.training_module.SECONDS_BETWEEN_CHECKPOINTS = 0.0

class Lesson(t.Lesson):
    def __call__(self, batch, rng):
        if len(self.batches) + 1 == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch, rng)

t.Lesson = Lesson
requests = [EditRequest(f"subject {i}", "{} is", "it", case_id=i) for i in range(6)]
for killed_at in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        t.train(Path(sys.argv[2]), requests, killed_at or None)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]) == bool(killed_at)
"""


def test_a_training_under_sigkill_ends_with_the_same_bytes(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    contents = []
    for name, kills in (("unbroken", "0"), ("killed", "4 9 2 0")):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", KILL, str(Path(__file__).parent), str(tmp_path / name), *kills.split()]
        subprocess.run(command, check=True, env=environment)
        contents.append((tmp_path / name / "editor.safetensors").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 0.01}])
def test_a_checkpoint_of_another_training_is_not_used(tmp_path, requests, unbroken, change):
    train(tmp_path, requests, killed_at=20, **change)
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert train(tmp_path, requests) == unbroken
    assert train(tmp_path, requests, **change) != unbroken


def test_a_damaged_checkpoint_is_named_and_not_used(tmp_path, requests, caplog):
    unbroken = train(tmp_path / "unbroken", requests)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no")
    assert train(tmp_path, requests) == unbroken
    assert re.search(r"checkpoint.safetensors: damaged .*; training starts afresh", caplog.text)


def run(requests, folder, lesson=Lesson, seed=0, **changes):
    """Lesson and progress of a training that is only run."""
    network = build_network()
    taught = lesson(network)
    trainer = Trainer(network, taught, requests, EditorTraining(**(SETTINGS | changes)), seed)
    return taught, trainer.run(folder / "checkpoint.safetensors", "identity")


def test_held_out_requests_are_never_trained_on(tmp_path, requests):
    trained, held_out = set(), set()

    class Watched(Lesson):
        def __call__(self, batch, rng):
            (trained if self.network.training else held_out).update(request.case_id for request in batch)
            return super().__call__(batch, rng)

    run(requests, tmp_path, Watched)
    assert len(held_out) == 2
    assert trained == {request.case_id for request in requests} - held_out


class Rising(Lesson):
    """Trains as ever, but the held-out loss rises after the second measurement."""

    measured = 0

    def __call__(self, batch, rng):
        loss = super().__call__(batch, rng)
        if self.network.training:
            return loss
        self.measured += 1
        if self.measured == 2:
            self.best = [parameter.clone() for parameter in self.network.parameters()]
        return torch.tensor([5.0, 1.0, 2.0][min(self.measured, 3) - 1])


def test_training_stops_early_and_keeps_the_best_network(tmp_path, requests):
    taught, progress = run(requests, tmp_path, Rising, steps=60, patience=2)
    assert (progress.step, progress.best_step, progress.best_loss) == (12, 6, 1.0)
    for parameter, best in zip(taught.network.parameters(), taught.best, strict=True):
        assert torch.equal(parameter, best)
    assert not taught.network.training


def test_the_loss_falls(tmp_path, requests):
    _, short = run(requests, tmp_path / "short", steps=3)
    _, long = run(requests, tmp_path / "long", steps=60)
    assert long.best_loss < short.best_loss / 3


def test_a_training_that_diverges_is_refused(tmp_path, requests):
    class Diverging(Lesson):
        def __call__(self, batch, rng):
            return super().__call__(batch, rng) * torch.nan

    with pytest.raises(TrainedEditorError, match="never a finite number; lower learning_rate"):
        run(requests, tmp_path, Diverging)


def test_one_request_is_too_few(tmp_path, requests):
    with pytest.raises(TrainedEditorError, match=r"requests: 1 to train on; give at least 2"):
        run(requests[:1], tmp_path)


def test_log_lines_say_where_the_training_stands(tmp_path, requests, caplog, monkeypatch):
    monkeypatch.setattr(training_module, "SECONDS_BETWEEN_LOG_LINES", 0.0)
    with caplog.at_level(logging.INFO, "coachhook"):
        run(requests, tmp_path)
    assert re.fullmatch(r"step 1 of at most 12: loss \d+\.\d{3}", caplog.messages[0])
    line = r"step 12 of at most 12: loss \d+\.\d{3}, best held-out loss \d+\.\d{3} at step \d+"
    assert re.fullmatch(line, caplog.messages[-1])


def test_only_the_network_is_in_the_file(tmp_path, requests, unbroken):
    (tmp_path / "editor").write_bytes(unbroken)
    with safe_open(tmp_path / "editor", "pt") as file:
        assert set(file.keys()) == set(build_network().state_dict())


def test_a_trained_editor_is_read_as_it_was_written(tmp_path, unbroken):
    path = tmp_path / "editor"
    path.write_bytes(unbroken)
    editor = read_trained_editor(path, "Toy", build_model("gpt2"), LAYERS)
    assert EditorTraining(**editor.training) == EditorTraining(**SETTINGS)
    assert MethodConfig(**editor.config) == CONFIG
    assert editor.reached["step"] == 12
    assert editor.reached["best_loss"] < 10


@pytest.mark.parametrize(
    ("method", "seed", "layers", "problem"),
    [
        ("Mend", 0, LAYERS, "was trained for Toy, not for Mend; train one for Mend"),
        ("Toy", 1, LAYERS, "was trained on another model; train it on this one"),
        ("Toy", 0, (1,), r"was trained for layers \[1, 2\], not \[1\]; edit those layers or train it again"),
    ],
)
def test_an_editor_of_something_else_is_refused_in_one_line(tmp_path, unbroken, method, seed, layers, problem):
    path = tmp_path / "editor"
    path.write_bytes(unbroken)
    with pytest.raises(TrainedEditorError, match=f"^{re.escape(str(path))}: {problem}$"):
        read_trained_editor(path, method, build_model("gpt2", seed), layers)


@pytest.mark.parametrize("content", [b"", b"no", None])
def test_what_is_no_trained_editor_is_refused_in_one_line(tmp_path, unbroken, content):
    path = tmp_path / "editor"
    path.write_bytes(unbroken[:-40] if content is None else content)
    with pytest.raises(TrainedEditorError, match=r"^[^\n]*editor: not a trained editor [^\n]*; train it again$"):
        read_trained_editor(path, "Toy", build_model("gpt2"), LAYERS)
