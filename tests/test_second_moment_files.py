import logging

import numpy as np
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.covariance_file import CovarianceError, read_covariance, write_covariance
from coachhook.second_moment_files import read_second_moments, write_second_moments

MODULES = {
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gptj": "transformer.h.{}.mlp.fc_out",
    "llama": "model.layers.{}.mlp.down_proj",
}


def publish(folder, module, total, count, **more):
    """A file as ROME's and MEMIT's `layer_stats` writes it: a state_dict of scalars and arrays, through numpy.savez."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{module}_float32_mom2_100000.npz"
    state = {"mom2.constructor": "util.runningstats.SecondMoment()", "mom2.count": count, "mom2.mom2": total}
    np.savez(path, **state, sample_size=100_000, **more)
    return path


@pytest.fixture
def keys():
    return {layer: np.random.default_rng(layer).normal(size=(500, 48)).astype(np.float32) for layer in LAYERS}


@pytest.fixture
def published(tmp_path, keys):
    for layer, rows in keys.items():
        publish(tmp_path / "stats", MODULES["gpt2"].format(layer), rows.T @ rows, len(rows))
    return tmp_path / "stats"


def test_published_sums_become_moments(published, keys):
    covariance = read_second_moments(published, build_model("gpt2"))
    assert covariance.layers == LAYERS
    assert covariance.tokens == 500
    for layer, rows in keys.items():
        exact = torch.from_numpy(rows).double()
        assert covariance.matrices[layer].dtype == torch.float64
        torch.testing.assert_close(covariance.matrices[layer], exact.T @ exact / 500, rtol=1e-5, atol=1e-5)
        assert covariance.background[layer].shape == (0, 48)


def test_single_files_and_layers_can_be_chosen(published):
    model = build_model("gpt2")
    assert read_second_moments(published, model, [2]).layers == (2,)
    assert read_second_moments([next(iter(sorted(published.iterdir())))], model).layers == (1,)


def test_what_was_imported_is_kept_and_edits(published, tokenizer, requests, tmp_path):
    model = build_model("gpt2")
    write_covariance(read_second_moments(published, model), tmp_path / "c.safetensors")
    read = read_covariance(tmp_path / "c.safetensors", model, LAYERS)
    assert read.convergence == {}
    editor = Editor(model, tokenizer, "memit", tmp_path / "c.safetensors", target_steps=2, context_templates=())
    assert editor.edit(requests[:2]).step == 1


@pytest.mark.parametrize("family", MODULES)
def test_there_and_back(covariances, family, tmp_path):
    model = build_model(family)
    written = write_second_moments(covariances[family], tmp_path / "new" / "stats", model, sample_size=20)
    assert [path.name for path in written] == [
        f"{MODULES[family].format(layer)}_float32_mom2_20.npz" for layer in LAYERS
    ]
    read = read_second_moments(tmp_path / "new" / "stats", model, LAYERS)
    assert (read.tokens, read.model_digest) == (covariances[family].tokens, covariances[family].model_digest)
    for layer in LAYERS:
        torch.testing.assert_close(read.matrices[layer], covariances[family].matrices[layer], rtol=1e-6, atol=1e-9)


def test_their_loader_finds_all_that_it_asks_for(covariances, tmp_path):
    """It compares sample_size, then takes count and mom2 below the prefix of the statistic's name."""
    (path, _) = write_second_moments(covariances["gpt2"], tmp_path, build_model("gpt2"))
    with np.load(path, allow_pickle=False) as file:
        assert file["sample_size"] == 100_000
        state = {name.removeprefix("mom2."): file[name] for name in file.files if name.startswith("mom2.")}
    assert state["mom2"].dtype == np.float32
    expected = covariances["gpt2"].matrices[1]
    torch.testing.assert_close(
        torch.from_numpy(state["mom2"]).double() / int(state["count"]), expected, rtol=1e-6, atol=1e-9
    )


def refused(words, *args):
    with pytest.raises(CovarianceError, match=words) as caught:
        read_second_moments(*args)
    assert "\n" not in str(caught.value)


def test_wrong_files_are_refused(tmp_path):
    model, good = build_model("gpt2"), np.eye(48, dtype=np.float32)
    first = MODULES["gpt2"].format(1)
    crooked, holed = good.copy(), good.copy()
    crooked[0, 1], holed[3, 3] = 5, np.nan
    for index, (module, total, count, words) in enumerate(
        [
            (first, np.eye(47, dtype=np.float32), 9, "is 47×47, this model's keys are 48 wide"),
            (first, good[0], 9, "is 48, this model's keys are 48 wide"),
            (first, holed, 9, "layer 1 holds NaN"),
            (first, crooked, 9, "not symmetric"),
            (first, good, 0, "counts 0 tokens"),
            (first, np.array("text"), 9, "no second moment can be read"),
            (first, np.array([None]), 9, "no second moment can be read"),
            (MODULES["gptj"].format(1), good, 9, "transformer.h.1.mlp.fc_out, which this model does not edit"),
            (MODULES["gpt2"].format(9), good, 9, "transformer.h.9.mlp.c_proj, which this model does not edit"),
        ]
    ):
        publish(tmp_path / str(index), module, total, count)
        refused(words, tmp_path / str(index), model)


def test_damaged_and_foreign_files_are_refused(published, tmp_path):
    model = build_model("gpt2")
    path = next(iter(sorted(published.iterdir())))
    content = path.read_bytes()
    for damaged in (b"", content[:1000], content[:-30], b"PK" + content[:50]):
        path.write_bytes(damaged)
        refused("no second moment can be read.*get it again", published, model)
    np.savez(path, other=np.eye(48))
    refused("no second moment can be read", published, model)
    path.rename(published / "something.npz")
    refused("its name is not MODULE_float32_mom2_SAMPLES.npz", published, model)
    refused("holds no .npz file", tmp_path, model)


@pytest.mark.parametrize("cut", ["_t{batch_tokens}", "_t1024"])
@pytest.mark.parametrize("statistics", ["mom2", "mean-mom2", "mom2-norm_mean"])
def test_names_of_cut_texts_and_several_statistics_are_read(published, cut, statistics):
    """Where texts were cut, their loader writes the braces themselves; where that was mended, a number."""
    for path in published.iterdir():
        path.rename(path.with_name(path.name.replace("_mom2", f"_{statistics}{cut}")))
    assert read_second_moments(published, build_model("gpt2")).layers == LAYERS


def test_two_files_of_one_layer_are_refused(published, keys):
    path = published / f"{MODULES['gpt2'].format(1)}_float32_mom2_100000.npz"
    path.with_name(path.name.replace("_100000", "_t1024_100000")).write_bytes(path.read_bytes())
    refused(r"_t1024_100000.npz: is of layer 1, as .*_mom2_100000.npz is; give one", published, build_model("gpt2"))


def test_missing_layers_are_refused(published):
    refused(r"holds layers \[1, 2\], not \[3\]", published, build_model("gpt2"), [2, 3])


def test_another_models_covariance_is_not_written(covariances, tmp_path):
    with pytest.raises(CovarianceError, match="another model"):
        write_second_moments(covariances["gpt2"], tmp_path, build_model("gpt2", seed=1))
    assert not list(tmp_path.iterdir())


def test_layers_of_different_counts_note_the_smallest(published, keys, caplog):
    caplog.set_level(logging.INFO)
    publish(published, MODULES["gpt2"].format(2), keys[2][:300].T @ keys[2][:300], 300)
    assert read_second_moments(published, build_model("gpt2")).tokens == 300
    assert "different numbers of tokens" in caplog.text
