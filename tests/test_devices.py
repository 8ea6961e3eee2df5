"""Models spread over devices: every method edits them with the same bytes as the model in one piece."""

import gc

import pytest
import torch
from accelerate import dispatch_model
from conftest import LAYERS, build_model
from pretend_devices import PretendDevices, device_of, spread
from test_all_methods import settings, trained_editor  # noqa: F401 (a fixture)
from test_editors import logits
from torch._subclasses.fake_tensor import FakeTensor

from coachhook import Editor, compute_covariance, methods
from coachhook.architectures import ArchitectureError, ModelParts
from coachhook.editors import METHODS
from coachhook.journal import pack_step

BLOCKS = [f"model.layers.{layer}" for layer in range(5)]
WHOLE = ["model.embed_tokens", "model.rotary_emb", *BLOCKS, "model.norm", "lm_head"]
# Every border that there can be: inputs, edited layers, last block, norm and head each on a device of their own.
THREE = dict(zip(WHOLE, ("cpu:1", "cpu:1", "cpu:1", "cpu:2", "cpu:3", "cpu:3", "cpu:1", "cpu:2", "cpu:3"), strict=True))


def llama():
    """With a head of its own: tied weights would have to lie on one device."""
    model = build_model("llama")
    assert not model.config.tie_word_embeddings
    return model


def run(model, method, tokenizer, requests, covariances, trained):
    """Bytes of two steps, and what the model says after them, disabled, rolled back, replayed and evaluated."""
    covariance = covariances["llama"] if METHODS[method].load().needs_covariance else None
    editor = Editor(model, tokenizer, method, covariance, trained_editor=trained, **settings(method)[0])
    updates = [editor.edit(batch).update for batch in (requests[:3], requests[3:])]
    shown = [say(model, tokenizer, requests)]
    with editor.disabled():
        shown.append(say(model, tokenizer, requests))
    metrics = editor.evaluate(requests)
    editor.rollback(0)
    for update in updates:
        editor.replay(update)
    shown.append(say(model, tokenizer, requests))
    zs = [z.cpu() for _, z, _ in editor.z_scores([request.text for request in requests])]
    editor.close()
    return [pack_step(1, update) for update in updates], [tensor.cpu() for tensor in shown], metrics, zs


@torch.no_grad()
def say(model, tokenizer, requests):
    return logits(model, tokenizer, requests)


def same(found, expected):
    assert found[0] == expected[0]
    assert found[2] == expected[2]
    for some, others in ((found[1], expected[1]), (found[3], expected[3])):
        assert len(some) == len(others)
        for a, b in zip(some, others, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", methods())
def test_every_method_on_three_devices(method, tokenizer, requests, covariances, trained_editor):  # noqa: F811
    arguments = method, tokenizer, requests, covariances, trained_editor(method, "llama")
    expected = run(llama(), *arguments)
    with PretendDevices():
        same(run(spread(llama(), THREE), *arguments), expected)


@pytest.mark.parametrize("method", [name for name in methods() if name != "lora"])
def test_every_method_on_a_model_that_lies_on_disk(method, tokenizer, requests, covariances, trained_editor, tmp_path):  # noqa: F811
    arguments = method, tokenizer, requests, covariances, trained_editor(method, "llama")
    expected = run(llama(), *arguments)
    model = dispatch_model(llama(), dict.fromkeys(WHOLE, "disk"), offload_dir=tmp_path)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    same(run(model, *arguments), expected)


def test_adapters_on_offloaded_weights_are_refused(tokenizer, tmp_path):
    model = dispatch_model(llama(), dict.fromkeys(WHOLE, "disk"), offload_dir=tmp_path)
    with pytest.raises(ArchitectureError, match=r"lora: .* without offloading"):
        Editor(model, tokenizer, "lora", layers=LAYERS)


@pytest.mark.parametrize("method", ["mend", "serac"])
def test_editors_are_trained_on_three_devices(method, tokenizer, requests, trained_editor, tmp_path):  # noqa: F811
    config, training = settings(method)
    method_class = METHODS[method].load()
    arguments = method_class.config_class(**config), method_class.training_class(**training), requests
    files = {"out": tmp_path / "editor", "checkpoint": tmp_path / "checkpoint"}
    with PretendDevices():
        method_class.train(spread(llama(), THREE), tokenizer, *arguments, **files, seed=0)
    assert files["out"].read_bytes() == trained_editor(method, "llama").read_bytes()


def test_covariances_on_three_devices(tokenizer, tmp_path):
    texts = ["The river runs along the city of Rome for many years."] * 2
    expected = compute_covariance(llama(), tokenizer, texts, LAYERS)
    with PretendDevices():
        spread_out = compute_covariance(spread(llama(), THREE), tokenizer, texts, LAYERS)
    on_disk = dispatch_model(llama(), dict.fromkeys(WHOLE, "disk"), offload_dir=tmp_path)
    for found in (spread_out, compute_covariance(on_disk, tokenizer, texts, LAYERS)):
        assert found.model_digest == expected.model_digest
        assert all(torch.equal(found.matrices[layer], expected.matrices[layer]) for layer in LAYERS)


def test_what_belongs_to_a_layer_lies_where_the_layer_is():
    with PretendDevices():
        parts = ModelParts(spread(llama(), THREE))
        assert [str(parts.device(layer)) for layer in range(5)] == ["cpu:1", "cpu:2", "cpu:3", "cpu:3", "cpu:1"]
        assert str(parts.input_device) == "cpu:1"
        assert str(device_of(parts.base_weight(1))) == "cpu:2"


def test_the_pretended_devices_do_refuse_to_mix():
    with PretendDevices():
        one, two = torch.ones(3, device="cpu:1"), torch.ones(3).to("cpu:2")
        assert (str(one.device), str(two.device), str((two * 2)[:1].device)) == ("cpu:1", "cpu:2", "cpu:2")
        for mixed in (lambda: one + two, lambda: torch.cat([one, two]), lambda: one[two.long()], lambda: one @ two):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        assert torch.equal(one[torch.tensor([0])].cpu() + two[:1].cpu(), torch.tensor([2.0]))
        model = spread(llama(), THREE)
        model.model.layers[0]._hf_hook.execution_device = torch.device("cpu:2")
        with pytest.raises(RuntimeError, match="same device"):
            model(torch.tensor([[1, 2]]))


def tensor_bytes():
    """What all tensors hold that are not frozen, which on a GPU is their memory."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        kind = type(thing)  # isinstance asks odd things, which warn
        # FakeTensors, which torch.compile leaves behind, say they are on a device and hold nothing.
        if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor) and thing.device.type != "meta":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.fixture
def counted_from_here():
    """What is there already, a million objects of the libraries, is neither looked through nor counted."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("method", methods())
@pytest.mark.usefixtures("counted_from_here")
def test_an_editor_that_is_gone_holds_no_memory(method, tokenizer, requests, covariances, trained_editor):  # noqa: F811
    """Streams of a study are processes of their own; who runs one after the other in one gets all memory back too."""
    trained, covariance = trained_editor(method, "gpt2"), covariances["gpt2"]

    def stream():
        chosen = covariance if METHODS[method].load().needs_covariance else None
        editor = Editor(build_model("gpt2"), tokenizer, method, chosen, trained_editor=trained, **settings(method)[0])
        editor.edit(requests[:3])
        held = tensor_bytes()
        editor.evaluate(requests[:3])
        editor.close()
        return held

    stream()  # what is made once for all, such as what a library keeps
    before = tensor_bytes()
    assert stream() > before
    assert tensor_bytes() == before
