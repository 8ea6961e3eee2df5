"""What is announced for the training of an editor, against real trainings and their files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIGS, LAYERS, build_model
from safetensors import safe_open
from transformers import GPT2Config

from coachhook.architectures import ArchitectureError
from coachhook.editors import METHODS
from coachhook.editors import training as training_module
from coachhook.editors.base import TrainedMethod
from coachhook.hyperparameters import HyperparameterError, registered
from coachhook.model_shape import ModelShapeError
from coachhook.needs import Available, PreflightError, refuse_if_too_large
from coachhook.preflight import plan_stream, plan_training
from coachhook.speed import Speed

ROOT = Path(__file__).parents[1]
GPT2_XL = GPT2Config(n_layer=48, n_embd=1600, n_head=25)
SPEED = Speed(block=1e-4, head=1e-5, product=1e-12)
TRAINED = [name for name, entry in METHODS.items() if issubclass(entry.load(), TrainedMethod)]
EDITOR = "the editor, the best so far, Adam's moments"
SMALL = {
    "mend": {"rank": 6, "batch_size": 2, "accumulate": 2},
    "serac": {"width": 16, "blocks": 1, "heads": 2, "embedding_width": 8, "batch_size": 2},
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_peak_memory_is_what_is_announced():
    command = [sys.executable, str(ROOT / "benchmarks" / "training_memory.py")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(\S+): announced ([\d.]+) GB, measured ([\d.]+) GB", said)
    assert len(found) == 5, said
    for _, announced, measured in found:
        assert float(announced) > 0.4  # not so small that the libraries are all of it
        assert 0.9 < float(announced) / float(measured) < 1.2, said


@pytest.mark.parametrize("method", TRAINED)
def test_the_editor_and_its_checkpoint_are_as_large_as_planned(method, tokenizer, requests, tmp_path, monkeypatch):
    """Every trained method has a plan, and it is of the network that is really trained."""
    model, method_class = build_model("gpt2"), registered(method).load()
    settings = {**SMALL[method], "steps": 2, "validate_every": 1}
    out, checkpoint = tmp_path / "editor.safetensors", tmp_path / "checkpoint.safetensors"
    monkeypatch.setattr(training_module, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the checkpoint stays
    method_class.train(
        model,
        tokenizer,
        method_class.config_class(layers=LAYERS),
        method_class.training_class(**settings),
        requests,
        out=out,
        checkpoint=checkpoint,
        seed=0,
    )
    with safe_open(out, "pt") as file:
        network = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 (a file, not a dict)
    with safe_open(checkpoint, "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    needs = plan_training(model, method, LAYERS, settings)
    assert needs.parts[EDITOR] == 4 * network
    assert needs.disk_parts == {"checkpoint": 8 * network, "trained editor": network}
    assert 4 * network == pytest.approx(stored, rel=0.1)  # statistics have no moments, but those count steps
    assert needs.memory_bytes == sum(needs.parts.values())


def test_of_published_sizes_the_network_is_what_its_equations_say():
    """MEND at GPT2-XL: U (w×r) and V (r×w) twice, per map a bias, per layer scale, shift and statistics, w = 8,000."""
    mend = plan_training(GPT2_XL, "mend", (13, 14, 15), dtype="float32")
    width, rank, layers = 8000, 1920, 3
    numbers = 2 * (2 * width * rank + width + 2 * layers * width) + layers + 2 * layers * width
    assert mend.parts[EDITOR] == 4 * (4 * numbers + 8 * layers)  # and the count of tokens per layer, int64
    assert mend.disk_parts["checkpoint"] == 2 * mend.parts[EDITOR]
    serac = plan_training(GPT2_XL, "serac", (13,), dtype="float32")
    block = 4 * 768**2 + 3 * 768 * 4 * 768 + 2 * 768
    readers = 2 * (12 * block + 768 + 768 + 1600 * 768 + 768) + 769 * 768 + 769 * 1600  # vocabulary of one
    assert serac.parts[EDITOR] == 4 * 4 * (readers + 2)


def largest_moment(**changes):
    given = {"layers": (13, 14), "training": {}, "dtype": "float32", **changes}
    needs = plan_training(GPT2_XL, given.pop("method", "mend"), given.pop("layers"), **given)
    (name,) = needs.parts.keys() - {"weights", EDITOR, "libraries"}
    return name, needs.parts[name], needs


def test_the_largest_moment_is_named():
    network = largest_moment()[2].parts[EDITOR] // 4
    many, one = (largest_moment(training={"accumulate": n, "batch_size": 30}) for n in (2, 1))
    assert many[0] == one[0] == "the loss of a batch"
    assert many[1] - one[1] > network  # the gradient so far, and what is left of the loss before
    alone = {"accumulate": 1, "batch_size": 1, "width": 2048, "heads": 16}
    name, count, needs = largest_moment(method="serac", training=alone)
    assert name == "a copy of the best network"
    assert count == pytest.approx(1.2 * 2 * needs.parts[EDITOR] / 4)


def test_larger_batches_texts_and_networks_need_more():
    def memory(**changes):
        return largest_moment(**{"training": {"batch_size": 30}, **changes})[2].memory_bytes

    assert memory(training={"batch_size": 60}) > memory()
    assert memory(training={"batch_size": 30, "rank": 4000}) > memory()
    assert memory(prompt_tokens=64) > memory()
    assert memory(layers=(13, 14, 15)) > memory()
    assert memory(dtype="bfloat16") < memory()
    many = {"batch_size": 64, "width": 384}
    assert memory(method="serac", training=many) > memory(method="serac", training={**many, "blocks": 6})


def test_on_a_gpu_the_checkpoint_is_in_main_memory():
    _, count, needs = largest_moment(method="serac", device="cuda")
    network = needs.parts[EDITOR] // 4
    assert count >= 2 * network
    assert needs.host_bytes == max(needs.parts["weights"], 4 * network) + needs.parts["libraries"]
    assert largest_moment(method="serac")[2].host_bytes == 0


def test_tokens_and_time_are_those_of_all_steps():
    def needs(method="mend", **training):
        return plan_training(GPT2_XL, method, (13,), {"steps": 10, **training}, speed=SPEED)

    assert needs().tokens == 10 * 10 * 4 * 32
    assert needs("serac", accumulate=1, batch_size=3).tokens == 10 * 6 * 3 * 32
    assert needs(steps=20).seconds == pytest.approx(2 * needs().seconds)
    assert needs(accumulate=5).seconds == pytest.approx(needs().seconds / 2)
    # Edit, wording, probe and the base model on the probe through 48 blocks; three of them back through 35.
    model = 100 * 32 * (4 * 48 + 3 * 35) * SPEED.block + 100 * 7 * 4 * SPEED.head
    maps = 100 * 32 * (12 * 8000 * 1920 + 9 * 1600 * 6400) * SPEED.product
    assert needs().seconds == pytest.approx(model + maps)
    assert needs("serac").seconds is None
    assert "does not run what is trained" in needs("serac").untimed
    assert plan_training(GPT2_XL, "mend", (13,)).seconds is None


def test_what_cannot_fit_is_refused_with_the_number():
    needs = plan_training(GPT2_XL, "mend", (13,), {"batch_size": 1000}, dtype="float32")
    with pytest.raises(PreflightError) as caught:
        refuse_if_too_large(needs, Available(10**10, 10**10, 10**12))
    words = r"training mend for gpt2, 100000 steps: needs [\d.]+ (G|T)B of memory on cpu, .* for the loss of a batch, "
    assert re.match(words + "10 GB are free; take fewer layers, smaller batches", str(caught.value))


def test_what_is_wrong_is_one_line():
    model = CONFIGS["gpt2"][1]
    for error, words, call in (
        (HyperparameterError, "memit has no editor to train", lambda: plan_training(model, "memit", (1,))),
        (HyperparameterError, "rank: .*greater", lambda: plan_training(model, "mend", (1,), {"rank": 0})),
        (HyperparameterError, "width: extra inputs", lambda: plan_training(model, "mend", (1,), {"width": 8})),
        (ArchitectureError, "9 does not exist", lambda: plan_training(model, "mend", (9,))),
        (ArchitectureError, "9 does not exist", lambda: plan_training(model, "serac", (9,))),
        (
            ModelShapeError,
            "no-one/nothing: its configuration cannot be read",
            lambda: plan_training(model, "serac", (1,), {"scope_model": "no-one/nothing"}),
        ),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_reader_from_a_directory_is_planned_by_its_configuration(tmp_path):
    CONFIGS["llama"][1].save_pretrained(tmp_path)
    model = CONFIGS["gpt2"][1]
    from_there, built = (
        plan_training(model, "serac", (1,), {**SMALL["serac"], "counterfactual_model": name})
        for name in (str(tmp_path), None)
    )
    assert from_there.parts[EDITOR] > built.parts[EDITOR]


def test_a_stream_is_still_planned_without_its_training():
    assert EDITOR not in plan_stream(GPT2_XL, "mend", (13,), edits=10, batch_size=1).parts
