"""What is announced, against what the code takes: real solvers, journals, hooks, searches and files."""

import copy

import pytest
import torch
from conftest import CONFIGS, LAYERS, TEXT, build_model
from transformers import GPT2Config, GPTJConfig

from coachhook import Editor, methods
from coachhook.architectures import ArchitectureError, ModelParts
from coachhook.covariance import compute_covariance, unfinished_path
from coachhook.covariance_memory import weight_bytes
from coachhook.hyperparameters import HyperparameterError, registered
from coachhook.model_shape import ModelShapeError, model_shape, shallow_model
from coachhook.preflight import plan_covariance, plan_stream
from coachhook.solver import RecursiveLeastSquares
from coachhook.speed import Speed, measure_speed
from coachhook.stream_needs import saved_bytes_per_token

GPT2_XL = GPT2Config(n_layer=48, n_embd=1600, n_head=25)


def test_the_shape_of_a_model_needs_its_configuration_only(family, tmp_path):
    model = build_model(family)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    real = weight_bytes(ModelParts(model))
    assert real == sum(tensor.nbytes for tensor in {id(p): p for p in model.parameters()}.values())
    for given in (str(tmp_path), tmp_path, model.config, model):
        parts = model_shape(given, "float32")
        assert parts.head.weight.device.type == "meta"
        assert weight_bytes(parts) == real
        assert [parts.width(layer) for layer in range(5)] == [48] * 5
    assert weight_bytes(model_shape(model, "bfloat16")) == real // 2


def test_gpt2_xl_and_gpt_j_are_as_large_as_published():
    assert weight_bytes(model_shape(GPT2_XL, "float32")) == 4 * 1_557_611_200
    assert weight_bytes(model_shape(GPTJConfig(), "float16")) == pytest.approx(2 * 6.05e9, rel=1e-3)


def test_a_covariance_of_gpt2_xl_takes_what_its_shapes_say():
    needs = plan_covariance(GPT2_XL, (13, 14, 15, 16, 17), dtype="float32")
    assert needs.parts["covariance sums"] == 5 * 6400**2 * 8
    assert needs.parts["weights"] == 4 * 1_557_611_200
    assert needs.memory_bytes == sum(needs.parts.values())
    assert 9e9 < needs.memory_bytes < 13e9
    assert needs.disk_bytes == 2 * 5 * (6400**2 * 8 + 4096 * 6400 * 4)
    assert (needs.tokens, needs.seconds, needs.host_bytes) == (1_000_000, None, 0)
    on_gpu = plan_covariance(GPT2_XL, (13,), device="cuda", dtype="float16")
    assert on_gpu.host_bytes >= on_gpu.parts["weights"]


def test_smaller_batches_dtypes_and_budgets_need_less():
    def memory(**changes):
        return plan_covariance(GPT2_XL, (13, 17), **{"dtype": "float32", **changes}).memory_bytes

    assert memory(batch_tokens=1024) < memory()
    assert memory(dtype="bfloat16") < memory()
    assert memory(max_tokens=100) < memory()
    assert memory(batch_tokens=1) == memory(batch_tokens=1024)  # a document is as long as the context
    assert memory(batch_tokens=1, document_tokens=10) < memory(batch_tokens=1)


def test_the_disk_of_a_covariance_is_what_it_writes(tokenizer, tmp_path, monkeypatch):
    model, out = build_model("gpt2"), tmp_path / "c.safetensors"
    monkeypatch.setattr("coachhook.covariance._Unfinished.remove", lambda self: None)
    compute_covariance(model, tokenizer, TEXT * 9, LAYERS, out, background=8, max_tokens=300, checkpoint_seconds=0)
    planned = plan_covariance(model, LAYERS, background=8, max_tokens=300).disk_parts
    assert planned["covariance"] == pytest.approx(out.stat().st_size, rel=0.1)
    state = unfinished_path(out).stat().st_size
    sketches = 2 * 48 * 48 * 8  # small beside real sums, not beside these
    assert planned["unfinished sums"] == pytest.approx(state - sketches, rel=0.3)


def test_a_models_weights_that_are_not_here_are_a_download(monkeypatch):
    monkeypatch.setattr("coachhook.model_shape.read_config", lambda model: GPT2_XL)
    needs = plan_covariance("openai-community/gpt2-xl", (13,), dtype="float32")
    assert needs.disk_parts["model to download"] == 4 * 1_557_611_200
    assert needs.job == "covariance of openai-community/gpt2-xl, layers 13"


def test_every_method_has_a_plan():
    model = build_model("gpt2")
    for method in methods():
        needs = plan_stream(model, method, (2,), edits=10, batch_size=1)
        assert needs.memory_bytes == sum(needs.parts.values()) > needs.parts["weights"]
        assert ("covariance" in needs.parts) == registered(method).load().needs_covariance


def test_a_solver_takes_what_is_planned(tokenizer, requests, covariances):
    model = build_model("gpt2")
    settings = {"target_steps": 2, "context_templates": 1, "context_length": 3}
    editor = Editor(model, tokenizer, "coachhook", covariances["gpt2"], layers=LAYERS, **settings)
    for batch in (requests[:3], requests[3:]):
        editor.edit(batch)
    parts = plan_stream(model, "coachhook", LAYERS, edits=6, batch_size=3, hyperparameters=settings).parts
    solvers = editor._method._solvers.values()
    factors = sum(solver._factor.nbytes for solver in solvers)
    assert parts["solver"] == factors + 48**2 * 8  # and a copy while one is made
    assert parts["past keys"] == sum(s._keys.nbytes + s._whitened.nbytes + s._gram.nbytes for s in solvers)
    matrices = sum(matrix.nbytes for matrix in covariances["gpt2"].matrices.values())
    assert parts["covariance"] == matrices + 2 * 4096 * 48 * 4  # and the sample of keys
    written = sum(tensor.nbytes for step in editor.journal for tensor in step.update.tensors.values())
    assert parts["journal"] == written
    assert parts["changes of the weights"] == 2 * editor.state_bytes + editor.state_bytes // 2
    assert isinstance(next(iter(solvers)), RecursiveLeastSquares)


def test_memit_forgets_its_keys():
    model = build_model("gpt2")
    memit, coachhook = (plan_stream(model, name, LAYERS, edits=500, batch_size=5) for name in ("memit", "coachhook"))
    assert coachhook.parts["past keys"] == 2 * 8 * (2 * 48 * 500 + 500**2)
    assert "past keys" not in memit.parts
    assert memit.parts["journal"] == 500 * 2 * 4 * (32 + 48)


def test_what_a_block_keeps_for_the_gradient_is_counted_right(family):
    """Against a real pass over padded prompts, which have a mask: what two blocks keep beyond what one keeps."""
    config, kept = CONFIGS[family][1], {}
    padded = torch.arange(64)[None] < 60
    for blocks in (1, 2):
        model = shallow_model(config, blocks, "cpu", torch.float32)
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        seen = {}

        def keep(tensor, weights=weights, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            embedded = torch.ones(1, 64, 32, requires_grad=True)
            model.base_model(inputs_embeds=embedded, attention_mask=padded.long(), use_cache=False)
        kept[blocks] = sum(count for count, _ in seen.values())
    expected = (kept[2] - kept[1]) / 64
    assert saved_bytes_per_token(model_shape(config, "float32")) == pytest.approx(expected, rel=0.02)


def test_more_edits_and_larger_batches_need_more():
    def needs(**changes):
        return plan_stream(GPT2_XL, "coachhook", (13, 17), **{"edits": 1000, "batch_size": 10, **changes})

    assert needs(edits=2000).memory_bytes > needs().memory_bytes
    assert needs(batch_size=100).memory_bytes > needs().memory_bytes
    assert needs(prompt_tokens=128).memory_bytes > needs().memory_bytes
    assert needs(device="cuda").host_bytes > needs(device="cuda").parts["changes of the weights"]
    assert "journal" not in needs(device="cuda").parts
    assert needs(evaluate_every=10).tokens > needs().tokens


SPEED = Speed(block=1e-4, head=1e-5, product=1e-9)


def test_time_grows_as_the_work_does():
    one, two = (plan_covariance(GPT2_XL, (13, 17), max_tokens=n, speed=SPEED).seconds for n in (1000, 2000))
    assert two == pytest.approx(2 * one)
    assert one == pytest.approx(1000 * (18 * 1e-4 + 2 * 6400**2 * 1e-9))

    def seconds(**changes):
        given = {"edits": 1000, "batch_size": 10, "speed": SPEED, **changes}
        return plan_stream(GPT2_XL, "coachhook", (13, 17), **given).seconds

    assert seconds(edits=2000) > 1.5 * seconds()
    assert seconds(hyperparameters={"target_steps": 40}) > 1.3 * seconds()
    assert seconds(evaluate_every=100) > seconds()
    assert plan_stream(GPT2_XL, "lora", (13,), edits=9, batch_size=1, speed=SPEED).seconds is None


def test_a_trial_measures_this_device():
    speed = measure_speed(CONFIGS["gpt2"][1], seconds=0.3)
    assert all(0 < value < 1e-2 for value in (speed.block, speed.head, speed.product))
    wide = copy.deepcopy(CONFIGS["gpt2"][1])
    wide.n_inner = 40_000
    assert measure_speed(wide, seconds=0.3).block > 3 * speed.block


def test_what_is_wrong_is_one_line(tmp_path):
    model = build_model("gpt2")
    for error, words, call in (
        (ArchitectureError, "9 does not exist", lambda: plan_covariance(model, (9,))),
        (ModelShapeError, "configuration cannot be read", lambda: plan_covariance(tmp_path, (1,))),
        (ModelShapeError, "configuration cannot be read", lambda: plan_covariance("no-one/nothing", (1,))),
        (ModelShapeError, "dtype: 'int8' is unknown", lambda: plan_covariance(model, (1,), dtype="int8")),
        (HyperparameterError, "'memitt' is unknown", lambda: plan_stream(model, "memitt", (1,), edits=1, batch_size=1)),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [20, 1536])
def test_the_leverage_gate_takes_what_is_planned(tokenizer, requests, covariances, size):
    """Sketches narrower than the keys, and as wide."""
    model, covariance = build_model("gpt2"), covariances["gpt2"]
    settings = {"target_steps": 2, "context_templates": 1, "context_length": 3, "sketch_size": size}
    editor = Editor(model, tokenizer, "coachhook-leverage", covariance, layers=LAYERS, **settings)
    for batch in (requests[:3], requests[3:]):
        editor.edit(batch)
    background = {len(keys) for keys in covariance.background.values()}
    planned = {"edits": 6, "batch_size": 3, "background": background.pop(), "hyperparameters": settings}
    needs = plan_stream(model, "coachhook-leverage", LAYERS, **planned)
    hooks, parts = list(editor._method.hooks), needs.parts
    sketches = sum(hook.gate.sketch.nbytes for hook in hooks)
    assert sketches == len(LAYERS) * min(size, 48) * 48 * 4
    retrieved = [(*hook.gate.retrieval._rows, *hook.gate.retrieval._settled()) for hook in hooks]
    assert parts["the gate"] == sketches + sum(tensor.nbytes for tensors in retrieved for tensor in tensors)
    factors = [hook.factors.nbytes for hook in hooks]
    assert parts["changes of the weights"] == 2 * sum(factors) + max(factors)
    assert sum(factors) + parts["the gate"] == editor.state_bytes
    kept = [solver._factors.nbytes for solver in editor._method._solvers.values()]
    assert parts["past keys"] == sum(kept) + max(kept)  # and one while it grows
    written = sum(tensor.nbytes for step in editor.journal for tensor in step.update.tensors.values())
    assert parts["journal"] == needs.disk_parts["journal"] == written
    held = [*covariance.matrices.values(), *covariance.background.values()]
    assert parts["covariance"] == sum(tensor.nbytes for tensor in held)
    samples = sum(calibration._background.nbytes for calibration in editor._method._calibrations.values())
    on_gpu = plan_stream(model, "coachhook-leverage", LAYERS, **planned, device="cuda")
    assert on_gpu.parts["the gate"] == parts["the gate"] + samples  # there they are another copy
    named = plan_stream(model, "coachhook", LAYERS, **planned | {"hyperparameters": settings | {"gate": "leverage"}})
    assert named.parts == parts
