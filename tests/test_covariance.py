import json
import logging
from itertools import pairwise

import literal
import pytest
import torch
from conftest import LAYERS, TEXT, build_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from coachhook import compute_covariance
from coachhook.covariance import (
    Covariance,
    CovarianceError,
    check_matrices,
    read_covariance,
    write_covariance,
)
from coachhook.errors import CoachHookError
from coachhook.second_moment import Reservoir

LONG = " ".join(TEXT * 4)  # longer than the context


def count_tokens(tokenizer, texts, context=64):
    return sum(min(context, len(tokenizer(text)["input_ids"])) for text in texts)


def test_the_moment_is_that_of_a_loop_over_documents(model, tokenizer):
    model = model.double()
    texts = [*TEXT, "", LONG, "Rome"]
    given = compute_covariance(model, tokenizer, texts, LAYERS, batch_tokens=100, background=10_000)
    expected, tokens, keys = literal.covariance(model, tokenizer, texts, LAYERS, 10**6)
    assert given.tokens == tokens == count_tokens(tokenizer, texts)
    assert given.layers == LAYERS
    for layer in LAYERS:
        assert given.matrices[layer].dtype == torch.float64
        error = (given.matrices[layer] - expected[layer]).norm()
        assert error <= 1e-8 * expected[layer].norm()  # GPT-J's rotary tables are float32
        # the sample is larger than the text, so it holds every key once
        order = given.background[layer].double().norm(dim=1).sort().values
        torch.testing.assert_close(order, keys[layer].norm(dim=1).sort().values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [1, 7, 20, 33])
def test_the_budget_holds_inside_a_document(tokenizer, budget):
    model = build_model("llama").double()
    given = compute_covariance(model, tokenizer, TEXT, LAYERS, max_tokens=budget)
    expected, tokens, _ = literal.covariance(model, tokenizer, TEXT, LAYERS, budget)
    assert given.tokens == tokens == budget
    torch.testing.assert_close(given.matrices[1], expected[1], rtol=1e-7, atol=1e-9)


def test_batches_do_not_change_the_moment(tokenizer):
    model = build_model("gpt2").double()
    texts = TEXT * 5 + [LONG]
    whole = compute_covariance(model, tokenizer, texts, LAYERS)
    for batch_tokens in (1, 64, 200):  # 1: every document alone
        pieces = compute_covariance(model, tokenizer, texts, LAYERS, batch_tokens=batch_tokens)
        assert pieces.tokens == whole.tokens
        torch.testing.assert_close(pieces.matrices[2], whole.matrices[2], rtol=1e-9, atol=1e-12)


def test_texts_may_be_an_endless_stream(tokenizer):
    def endless():
        while True:
            yield from TEXT

    model = build_model("gpt2")
    given = compute_covariance(model, tokenizer, endless(), (1,), max_tokens=200, batch_tokens=16)
    assert given.tokens == 200


def test_background_keys_are_keys_of_the_text_the_same_tokens_at_every_layer(tokenizer):
    model = build_model("gptj").double()
    given = compute_covariance(model, tokenizer, TEXT, LAYERS, background=9, batch_tokens=40)
    _, tokens, keys = literal.covariance(model, tokenizer, TEXT, LAYERS, 10**6)
    assert tokens > 9
    places = {}
    for layer in LAYERS:
        assert given.background[layer].shape == (9, 48)
        distance = torch.cdist(given.background[layer].double(), keys[layer])
        assert distance.min(1).values.max() <= 1e-4
        places[layer] = distance.argmin(1).tolist()
    assert places[1] == places[2]
    assert len(set(places[1])) == 9


def test_the_sample_is_drawn_from_the_seed(tokenizer):
    model = build_model("gpt2")
    draws = [
        compute_covariance(model, tokenizer, TEXT, (1,), background=5, seed=seed).background[1] for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_reservoir_is_uniform():
    """Each of 30 tokens is kept with probability 6/30, wherever the batches are cut; 5 standard errors."""
    draws, kept = 4000, torch.zeros(30)
    for seed in range(draws):
        reservoir = Reservoir({0: 1}, 6, seed)
        for chunk in torch.arange(30.0)[:, None].split([4, 9, 1, 16]):
            reservoir.offer({0: chunk})
        sample = reservoir.keys()[0][:, 0]
        assert len(sample.unique()) == 6
        kept[sample.long()] += 1
    error = (0.2 * 0.8 / draws) ** 0.5
    assert ((kept / draws - 0.2).abs() < 5 * error).all()


def test_computing_leaves_the_model_as_it_was(tokenizer):
    model = build_model("gpt2").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compute_covariance(model, tokenizer, TEXT, LAYERS)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_file_gives_back_what_was_computed(tokenizer, tmp_path):
    model = build_model("llama")
    path = tmp_path / "new" / "c.safetensors"
    given = compute_covariance(model, tokenizer, TEXT, LAYERS, path, background=4)
    read = read_covariance(path, model, LAYERS)
    assert (read.tokens, read.model_digest, read.layers) == (given.tokens, given.model_digest, LAYERS)
    for layer in LAYERS:
        assert torch.equal(read.matrices[layer], given.matrices[layer])
        assert torch.equal(read.background[layer], given.background[layer])
    assert [file.name for file in path.parent.iterdir()] == ["c.safetensors"]


def test_the_same_covariance_is_the_same_bytes(covariances, tmp_path):
    for index in range(5):
        write_covariance(covariances["gptj"], tmp_path / str(index))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_no_text_is_refused(tokenizer):
    model = build_model("gpt2")
    for texts in ([], ["", ""]):
        with pytest.raises(CovarianceError, match="no text"):
            compute_covariance(model, tokenizer, texts, LAYERS)


@pytest.fixture
def file(covariances, tmp_path):
    path = tmp_path / "covariance.safetensors"
    write_covariance(covariances["gpt2"], path)
    return path


def refused(words, *args):
    with pytest.raises(CoachHookError, match=words) as caught:
        read_covariance(*args)
    assert "\n" not in str(caught.value)
    assert "covariance.safetensors" in str(caught.value)


def test_nan_in_a_file_is_refused(file):
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = json.loads(opened.metadata()["coachhook"])
    del metadata["digest"]  # as in files of earlier versions
    tensors["covariance.2"][3, 4] = torch.nan
    save_file(tensors, file, {"coachhook": json.dumps(metadata)})
    refused("layer 2 holds NaN.*compute it again", file, build_model("gpt2"), LAYERS)


def test_another_model_of_the_same_shape_is_refused(file):
    read_covariance(file, build_model("gpt2"))
    refused("another model; compute it on this one", file, build_model("gpt2", seed=1))


def test_another_family_is_refused(file):
    refused("another model", file, build_model("llama"))


def test_other_layers_are_refused(file):
    refused(r"holds layers \[1, 2\], not \[3\]; compute it for layers \[2, 3\]", file, None, (2, 3))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused("cannot be read.*compute it again", file)


def test_a_file_that_is_no_covariance_is_refused(file):
    save_file({"x": torch.zeros(2)}, file)
    refused("not a covariance file", file)
    file.unlink()
    refused("cannot be read", file)


def test_a_failed_write_leaves_the_old_file(file, covariances, monkeypatch):
    before = file.read_bytes()

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr("coachhook.tensor_files.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        write_covariance(covariances["llama"], file)
    assert file.read_bytes() == before


def test_infinite_matrices_are_refused():
    check_matrices({1: torch.eye(2)})
    with pytest.raises(CovarianceError, match="layer 7 holds NaN or infinite"):
        check_matrices({1: torch.eye(2), 7: torch.full((2, 2), torch.inf)})


def test_a_covariance_knows_its_layers():
    assert Covariance({5: torch.eye(2), 3: torch.eye(2)}, {}, 1, "").layers == (3, 5)


def test_how_far_the_moment_has_settled_is_kept(tokenizer, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "c.safetensors"
    words, generator = " ".join(TEXT).split(), torch.Generator().manual_seed(0)
    drawn = torch.randint(len(words), (80, 10), generator=generator)  # no two alike: the sums settle as they grow
    texts = [" ".join(words[index] for index in row) for row in drawn]
    sizes = {"max_tokens": 400, "batch_tokens": 16, "background": 2}
    given = compute_covariance(build_model("gpt2"), tokenizer, texts, LAYERS, path, **sizes)
    for points in given.convergence.values():
        assert points[-1][0] == 400
        assert all(later >= 1.5 * earlier for (earlier, _), (later, _) in pairwise(points))
        assert 0 < points[-1][1] < points[0][1]
    assert read_covariance(path).convergence == given.convergence
    assert set(given.convergence) == set(LAYERS)
    assert "will need about" in caplog.messages[0]
    assert any("in the last doubling, to 400 tokens" in line for line in caplog.messages)


def test_a_file_from_before_convergence_was_noted_is_read(file):
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = json.loads(opened.metadata()["coachhook"])
    del metadata["convergence"], metadata["digest"]
    save_file(tensors, file, {"coachhook": json.dumps(metadata)})
    assert read_covariance(file, build_model("gpt2")).convergence == {}


def test_a_document_is_cut_where_that_is_asked(tokenizer):
    model = build_model("llama").double()
    cut = compute_covariance(model, tokenizer, [LONG, LONG, "Rome"], (1,), document_tokens=7)
    expected, tokens, _ = literal.covariance(model, tokenizer, [LONG, LONG, "Rome"], (1,), 10**6, document_tokens=7)
    assert cut.tokens == tokens
    torch.testing.assert_close(cut.matrices[1], expected[1], rtol=1e-7, atol=1e-9)
