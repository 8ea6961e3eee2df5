"""What a trained SERAC does: it answers edits in any wording, and the base model answers everything else."""

import json

import pytest
import torch
from conftest import LAYERS, build_model
from transformers import BertConfig, BertModel

from coachhook import Editor, EditRequest, Probe
from coachhook.architectures import ModelParts
from coachhook.editors.seen_text import SeenText, SeenTextError
from coachhook.editors.serac import Serac, SeracConfig
from coachhook.editors.serac_loss import SeracLoss, unclear_pairs
from coachhook.editors.serac_network import SeracNetwork, SeracTraining, describe
from coachhook.editors.trained_editor import TrainedEditorError
from coachhook.journal import read_step, write_step
from coachhook.tokens import encode_answers, pad

CONFIG = SeracConfig(layers=LAYERS)
TRAINING = SeracTraining(
    steps=200,
    batch_size=10,
    accumulate=1,
    learning_rate=2e-3,
    gradient_clip=1.0,
    validate_every=200,  # a single held-out request is no guide
    width=48,
    blocks=2,
    heads=4,
    embedding_width=16,
)
PLACES = ("Rome", "Paris", "Oslo", "London")
FIRST, LAST = ("Ada", "Alan", "Grace"), ("Lovelace", "Turing", "Hopper", "France", "Italy")
NAMES = [f"{first} {last}" for first in FIRST for last in LAST]
WORDINGS = ("{} was born in", "Where was {} born?", "The city of {} is")


def person(index):
    name = NAMES[index]
    return EditRequest(
        name,
        WORDINGS[index % 3],
        PLACES[index % 4],
        paraphrases=tuple(wording for wording in WORDINGS if wording != WORDINGS[index % 3]),
        locality=(
            Probe(f"{name} liked to run along the", "river", "same_subject"),
            Probe(WORDINGS[index % 3].replace("{}", LAST[index % 5]), "Rome"),
            Probe("Where does Hopper live?", "Oslo"),
        ),
        case_id=index,
        relation="birthplace",
    )


PEOPLE = [person(index) for index in range(len(NAMES))]
TRAINED_ON, UNSEEN = PEOPLE[:-2], PEOPLE[-2:]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def trained(request, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = build_model(request.param)
    files = {"out": folder / "serac.safetensors", "checkpoint": folder / "checkpoint", "seed": 0}
    Serac.train(model, tokenizer, CONFIG, TRAINING, TRAINED_ON, **files)
    assert all(parameter.grad is None for parameter in model.parameters())
    return request.param, files["out"]


@pytest.fixture
def editor(trained, tokenizer):
    family, path = trained
    editor = Editor(build_model(family), tokenizer, "serac", trained_editor=path, layers=LAYERS)
    yield editor
    editor.close()


@torch.no_grad()
def logits(model, tokenizer, text, **options):
    return model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), **options).logits[0]


def answer(model, tokenizer, text):
    return tokenizer.decode(logits(model, tokenizer, text)[-1].argmax()).strip()


def test_a_single_edit_holds_and_the_scope_blocks_an_unrelated_prompt(editor, tokenizer):
    model, request = editor.model, PEOPLE[0]
    unrelated = ("Many years ago in the engine", "Where does Hopper live?", "The capital of France is", NAMES[3])
    before = [logits(model, tokenizer, text) for text in (*unrelated, request.text)]
    editor.edit([request])
    assert answer(model, tokenizer, request.text) == request.target_new
    for text, base in zip(unrelated, before, strict=False):
        assert torch.equal(logits(model, tokenizer, text), base)
    with editor.disabled():
        assert torch.equal(logits(model, tokenizer, request.text), before[-1])
    editor.close()
    assert torch.equal(logits(model, tokenizer, request.text), before[-1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_edits_hold_in_other_words_and_spare_probes(editor):
    for batch in (TRAINED_ON[:6], TRAINED_ON[6:]):
        editor.edit(batch)
    metrics = editor.evaluate(TRAINED_ON)
    assert metrics.reliability >= 0.9
    assert metrics.generality >= 0.8
    assert metrics.locality_same_subject >= 0.9
    assert metrics.locality >= 0.7


def test_an_unseen_request_holds(editor):
    editor.edit(UNSEEN)
    assert editor.evaluate(UNSEEN).reliability == 1.0
    assert editor.evaluate(UNSEEN, "generate").reliability == 1.0


def test_an_answer_depends_on_nothing_right_of_it_nor_on_padding(editor, tokenizer):
    editor.edit(PEOPLE[:4])
    model, text = editor.model, PEOPLE[1].text
    ids = tokenizer(text)["input_ids"]
    alone = logits(model, tokenizer, text)
    longer = logits(model, tokenizer, f"{text} Oslo and wrote about the engine.")
    torch.testing.assert_close(longer[: len(ids)], alone, rtol=1e-4, atol=1e-4)
    other = tokenizer(f"{PEOPLE[2].text} and a long text about the city")["input_ids"]
    right = pad([ids, other], 7)
    with torch.no_grad():
        padded = model(right.ids, attention_mask=right.real.long()).logits[0, : len(ids)]
        gap = len(other) - len(ids)
        left = torch.tensor([[7] * gap + ids, other])
        mask = torch.ones_like(left)
        mask[0, :gap] = 0
        position = (mask.cumsum(-1) - 1).clamp_min(0)
        shifted = model(left, attention_mask=mask, position_ids=position).logits[0, gap:]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shifted, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_with_and_without_a_cache(editor, tokenizer, beams):
    editor.edit(PEOPLE[:4])
    tokenizer.padding_side = "left"
    texts = [request.text for request in PEOPLE[:3]] + ["The capital of France is"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    tokenizer.padding_side = "right"
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    cached, plain = (editor.model.generate(**batch, **options, use_cache=cached) for cached in (True, False))
    assert torch.equal(cached, plain)
    if beams == 1:
        said = tokenizer.batch_decode(cached[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert [text.strip() for text in said[:3]] == [request.target_new for request in PEOPLE[:3]]


def test_a_cache_of_unknown_text_is_refused(editor, tokenizer):
    model = editor.model
    first = tokenizer(PEOPLE[0].text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        editor.edit(PEOPLE[:1])
        with pytest.raises(SeenTextError, match="past_key_values: its text was not seen"):
            model(first["input_ids"][:, -1:], past_key_values=cache)
        with pytest.raises(SeenTextError, match="inputs_embeds"):
            model(inputs_embeds=model.get_input_embeddings()(first["input_ids"]))


def test_rows_of_a_cache_are_found_again(tokenizer):
    """As beam search moves them."""
    model, seen = build_model("gpt2"), SeenText()
    texts = torch.tensor([tokenizer(text)["input_ids"][:5] for text in ("The capital of Italy is", PEOPLE[1].text)])
    with torch.no_grad():
        output = model(texts[:, :4], use_cache=True)
        seen.read((), {"input_ids": texts[:, :4]}, output)
        output.past_key_values.reorder_cache(torch.tensor([1, 1]))
        output = model(texts[:, 4:], past_key_values=output.past_key_values)
    read = seen.read((), {"input_ids": texts[:, 4:]}, output)
    assert read.new == 1
    assert torch.equal(read.ids, torch.cat([texts[[1, 1], :4], texts[:, 4:]], 1))


def test_the_memory_grows_and_a_later_request_takes_an_earlier_ones_place(editor, tokenizer):
    sizes = [editor.state_bytes]
    for request in PEOPLE[:3]:
        editor.edit([request])
        sizes.append(editor.state_bytes)
    assert sizes == sorted(set(sizes))
    again = EditRequest(PEOPLE[0].subject, PEOPLE[0].prompt, "Oslo")
    assert again.target_new != PEOPLE[0].target_new
    editor.edit([again])
    assert editor.state_bytes == sizes[-1]
    assert answer(editor.model, tokenizer, again.text) == "Oslo"
    editor.rollback(3)
    assert answer(editor.model, tokenizer, again.text) == PEOPLE[0].target_new
    editor.rollback(0)
    assert editor.state_bytes == sizes[0]


def test_replayed_steps_have_the_same_bits(trained, editor, tokenizer, tmp_path):
    family, path = trained
    again = Editor(build_model(family), tokenizer, "serac", trained_editor=path, layers=LAYERS)
    weights = {name: tensor.clone() for name, tensor in editor.model.state_dict().items()}
    for step, batch in enumerate((PEOPLE[:3], PEOPLE[3:5]), 1):
        write_step(tmp_path, step, editor.edit(batch).update)
        again.replay(read_step(tmp_path, step))
    for request in PEOPLE[:6]:
        given, other = (logits(e.model, tokenizer, request.text) for e in (editor, again))
        assert torch.equal(given, other)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in editor.model.state_dict().items())


def test_the_threshold_decides(trained, tokenizer):
    family, path = trained
    model = build_model(family)
    base = logits(model, tokenizer, PEOPLE[0].text)
    options = {"trained_editor": path, "layers": LAYERS, "threshold": 1 - 1e-9}
    editor = Editor(model, tokenizer, "serac", **options)
    editor.edit(PEOPLE[:1])
    assert torch.equal(logits(model, tokenizer, PEOPLE[0].text), base)


def test_the_same_seed_gives_the_same_editor(tokenizer, tmp_path):
    contents = []
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        files = {"out": tmp_path / name, "checkpoint": tmp_path / "checkpoint", "seed": seed}
        model = build_model("gpt2")
        torch.manual_seed(len(contents))  # must not matter, and is left alone
        drawn = torch.get_rng_state()
        training = TRAINING.model_copy(update={"steps": 2})  # the last step is always measured
        Serac.train(model, tokenizer, CONFIG, training, TRAINED_ON, **files)
        Serac(model, tokenizer, CONFIG, None, files["out"]).close()
        contents.append(files["out"].read_bytes())
        assert torch.equal(torch.get_rng_state(), drawn)
    assert contents[0] == contents[1] != contents[2]


def literal_scope_loss(network, parts, tokenizer, entries, texts, unclear):
    """One text at a time. texts: (prompt, answer, index of its entry or None, "asked" or "probe", an entry as well)."""

    def embed(ids):
        hidden = network.scope(torch.tensor([ids]))[0]
        return hidden / hidden.norm(dim=-1, keepdim=True)

    probes = [(prompt, answer) for prompt, answer, _, kind in texts if kind == "probe"]
    keys = [embed(tokenizer(prompt)["input_ids"])[-1] for prompt, _ in (*entries, *probes)]
    losses = {"inside": [], "before": [], "probe": []}
    for row, (prompt, target, own, kind) in enumerate(texts):
        start = len(tokenizer(prompt)["input_ids"])
        for time, vector in enumerate(embed(tokenizer(f"{prompt} {target}")["input_ids"])):
            odds = [(network.log_slope.exp() * (vector @ key - network.margin)).exp() for key in keys]
            total = 1 + sum(o for index, o in enumerate(odds) if index == own or not unclear[row][index])
            inside = own is not None and time >= start - 1
            right = odds[own] if inside else torch.tensor(1.0)
            losses["inside" if inside else "before" if kind == "asked" else "probe"].append(-(right / total).log())
    return sum(torch.stack(values).mean() for values in losses.values())


def test_the_scope_loss_equals_the_literal_one(tokenizer):
    model = build_model("gpt2")
    parts = ModelParts(model)
    torch.manual_seed(0)
    network = SeracNetwork(parts, TRAINING, describe(parts, tokenizer, TRAINING)).eval()
    entries = [(request.text, request.target_new) for request in PEOPLE[:3]]
    asked = [(request.paraphrase_texts[0], request.target_new) for request in PEOPLE[:3]]
    probes = [("Where does Hopper live?", "Oslo"), (PEOPLE[2].text, "Rome")]
    unclear = torch.zeros(5, 5, dtype=torch.bool)
    unclear[0, 1] = unclear[4, 2] = unclear[1, 1] = unclear[3, 3] = unclear[4, 4] = unclear[2, 4] = True
    texts = [(*pair, index, "asked") for index, pair in enumerate(asked)] + [(*pair, None, "probe") for pair in probes]
    encoded = [encode_answers(tokenizer, pairs) for pairs in (entries, asked, probes)]
    with torch.no_grad():
        loss = SeracLoss(parts, tokenizer, network)._scope_loss(*encoded, unclear)
        expected = literal_scope_loss(network, parts, tokenizer, entries, texts, unclear)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_texts_about_the_same_fact_are_not_wrong():
    again = EditRequest(PEOPLE[0].subject, "{} comes from", "Oslo", relation="birthplace")
    other = EditRequest(PEOPLE[0].subject, "{} lives in", "Oslo", target_true="Rome", relation="home")
    probes = [
        Probe(PEOPLE[0].paraphrase_texts[1], "x"),
        Probe(f"The house of {other.subject}: ", "Rome"),
        Probe("a", "b"),
        Probe("a", "c"),
        Probe("c", "x"),
    ]
    assert unclear_pairs([PEOPLE[0], again, other, PEOPLE[1]], probes).int().tolist() == [
        [1, 1, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0, 0, 1],
        [0, 0, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 0, 0, 0, 1],
    ]
    assert unclear_pairs(PEOPLE[:2], []).tolist() == [[True, False], [False, True]]


@pytest.fixture
def hub(tokenizer, tmp_path):
    """A directory such as a hub name stands for."""
    build_model("gpt2", seed=5).save_pretrained(tmp_path / "hub")
    tokenizer.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


def test_both_models_can_start_from_hub_models_which_loading_does_not_need(tokenizer, hub, tmp_path):
    names = {"scope_model": str(hub), "counterfactual_model": str(hub), "steps": 2}
    files = {"out": tmp_path / "serac.safetensors", "checkpoint": tmp_path / "checkpoint", "seed": 0}
    Serac.train(build_model("llama"), tokenizer, CONFIG, TRAINING.model_copy(update=names), TRAINED_ON, **files)
    (hub / "config.json").unlink()
    (hub / "model.safetensors").unlink()
    model = build_model("llama")
    network = Serac(model, tokenizer, CONFIG, None, files["out"]).network
    start = build_model("gpt2", seed=5).transformer.wte.weight
    for reader in (network.scope, network.counterfactual):
        assert reader.backbone.config.model_type == "gpt2"
        assert (reader.backbone.wte.weight - start).abs().max() <= 0.01  # two steps of Adam away
        assert not torch.equal(reader.backbone.wte.weight, start)


def test_hub_models_that_do_not_fit_are_refused(tokenizer, hub, tmp_path):
    def train(name):
        training = TRAINING.model_copy(update={"scope_model": str(name)})
        Serac.train(build_model("gpt2"), tokenizer, CONFIG, training, TRAINED_ON, out="o", checkpoint="c", seed=0)

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=400, **shape)).save_pretrained(tmp_path / "bert")
    with pytest.raises(TrainedEditorError, match=r"scope_model: .*bert is of family bert; choose a causal one"):
        train(tmp_path / "bert")
    path = hub / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(content))
    with pytest.raises(TrainedEditorError, match="reads other tokens than the base model"):
        train(hub)
