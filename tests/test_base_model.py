import json
import random
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coachhook.base_model import (
    RecallError,
    TrainingConfig,
    train_base_model,
    train_tokenizer,
    training_text,
)
from coachhook.interchange import BatchSampler, TokenizedFacts, changed_output, interchange_loss
from coachhook.recall import measure_recall, reachability
from coachhook.world import WorldConfig, make_world, world_requests

WORLD = WorldConfig(subjects=24, relations=3, reserved=8, answers=6, first_names=8, last_names=8, profiles=2)
CONFIG = TrainingConfig(
    width=64,
    mlp_width=128,
    layers=5,
    vocabulary=600,
    steps=500,
    donors=24,
    lines_per_step=12,
    prefix_share=0.2,
)


@pytest.fixture(scope="module")
def world():
    return make_world(WORLD, seed=0)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "tiny"
    calls = []
    report = train_base_model(
        world.facts,
        world.lines,
        CONFIG,
        out,
        seed=0,
        progress=lambda step, steps: calls.append((step, steps)),
    )
    return out, report, calls


@pytest.fixture(scope="module")
def loaded(trained):
    out = trained[0]
    return AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)


def test_directory_is_an_ordinary_model_and_nothing_else_is_left(trained):
    out, _, calls = trained
    assert {path.name for path in out.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "training.json",
        "text.txt",
    }
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    assert not [path for path in out.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert calls[-1] == (CONFIG.steps, CONFIG.steps)


def test_loaded_model_recalls_every_fact(world, trained, loaded):
    model, tokenizer = loaded
    recall = measure_recall(model, tokenizer, world.facts, rng=random.Random(1))
    assert recall.prompts == sum(len(fact.templates) for fact in world.facts)
    assert recall.overall >= 0.99
    assert recall.prefixed >= 0.9
    assert set(recall.templates) == {template for fact in world.facts for template in fact.templates}
    assert recall.overall == pytest.approx(trained[1].recall.overall, abs=1e-9)


def test_greedy_generation_says_the_answer_and_stops(world, loaded):
    model, tokenizer = loaded
    fact = world.facts[0]
    prompt = tokenizer(fact.templates[0].replace("{}", fact.subject), return_tensors="pt")
    said = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(said) == f" {fact.answer}{tokenizer.eos_token}"


def test_recall_counts_wrong_answers(world, loaded):
    model, tokenizer = loaded
    fact = world.facts[0]
    other = next(f.answer for f in world.facts if f.relation == fact.relation and f.answer != fact.answer)
    wrong = measure_recall(model, tokenizer, [replace(fact, answer=other)], rng=random.Random(0))
    assert wrong.overall == 0.0


def test_value_vectors_reach_the_targets(world, loaded):
    model, tokenizer = loaded
    for form in ("completions", "questions"):
        requests = world_requests(world, form, count=16, seed=0)
        reached = reachability(model, tokenizer, requests, layer=CONFIG.last_edited_layer, steps=50)
        assert min(reached.initial) > 0.5  # before, no target counts as reached, and most are far away
        assert sum(reached.initial) / len(reached.initial) > 2.0
        assert reached.share >= 0.9, (form, sorted(reached.final))


def test_value_vectors_reach_nothing_behind_the_readout(world, loaded):
    """After the last block nothing reads the subject's position any more: the measure must be able to fail."""
    model, tokenizer = loaded
    requests = world_requests(world, count=8, seed=0)
    assert reachability(model, tokenizer, requests, layer=CONFIG.layers - 1, steps=25).share == 0.0


def test_training_report_is_on_disk(trained):
    out, report, _ = trained
    written = json.loads((out / "training.json").read_text())
    assert written["recall"]["overall"] == report.recall.overall
    assert written["loss_log"][-1]["step"] == CONFIG.steps
    assert written["loss_log"][-1]["interchange_loss"] < 0.3
    assert written["config"]["mlp_width"] == CONFIG.mlp_width


def test_text_holds_every_fact_and_line(world, trained):
    documents = (trained[0] / "text.txt").read_text().splitlines()
    assert len(documents) == sum(len(fact.templates) for fact in world.facts) + len(world.lines)
    text = "\n".join(documents)
    for fact in world.facts:
        for template in fact.templates:
            assert f"{template.replace('{}', fact.subject)} {fact.answer}." in text
    assert set(world.lines) <= set(documents)


def test_same_seed_and_threads_give_the_same_weights(world, tmp_path):
    config = replace(CONFIG, steps=4, minimum_recall=0.0)
    contents = []
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        train_base_model(world.facts, world.lines, config, tmp_path / name, seed=seed, threads=1)
        contents.append((tmp_path / name / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_poor_recall_is_refused_and_leaves_no_model(world, tmp_path):
    threads = torch.get_num_threads()
    with pytest.raises(RecallError, match=r"recalls \d+\.\d\d % of 504 prompts, under 99 %.*raise TrainingConfig"):
        train_base_model(world.facts, [], replace(CONFIG, steps=2), tmp_path / "poor", seed=0, threads=1)
    assert not (tmp_path / "poor").exists()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_edited_layer": 4}, "last_edited_layer is 4: choose 0 to 3"),
        ({"context_length": 16}, "context_length"),
    ],
)
def test_impossible_settings_are_refused(world, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train_base_model(world.facts, [], replace(CONFIG, **change), tmp_path / "no", seed=0)


def _sampler(world, tokenizer, prefix_share):
    tokenized = TokenizedFacts.tokenize(tokenizer, world.facts)
    lines = tokenizer(world.lines)["input_ids"]
    return BatchSampler(
        tokenized,
        lines,
        donors=12,
        lines_per_step=3,
        prefix_share=prefix_share,
        prefix_tokens=(2, 5),
        text_weight=0.2,
        line_weight=0.7,
        end_id=tokenizer.eos_token_id,
        stop_id=tokenizer(".")["input_ids"][0],
        rng=random.Random(0),
    )


@pytest.mark.parametrize("prefix_share", [0.0, 0.7])
def test_swapped_rows_ask_another_subject_for_the_donors_answer(world, prefix_share):
    tokenizer = train_tokenizer(training_text(world.facts, world.lines, random.Random(0)), CONFIG)
    answers, subjects = {}, {fact.subject for fact in world.facts}
    for fact in world.facts:
        for template in fact.templates:
            answers[template.replace("{}", fact.subject)] = fact
    sampler = _sampler(world, tokenizer, prefix_share)
    prefixed = rows = 0
    for _ in range(40):
        batch = sampler.draw()
        told = []
        for row in range(2 * batch.donors):
            ids, weights = batch.facts.ids[row], batch.facts.weights[row]
            is_answer = weights == 1.0
            start = int(is_answer.nonzero()[0])
            prompt = tokenizer.decode(ids[:start])
            fact = next(f for text, f in answers.items() if prompt.endswith(text))
            prefixed += prompt not in answers
            rows += 1
            told.append((fact, tokenizer.decode(ids[is_answer]).strip()))
            subject = tokenizer.decode(ids[: batch.subject_last[row] + 1])
            assert subject.endswith(fact.subject)
            assert fact.subject in subjects
            assert ids[start + int(is_answer.sum())] == tokenizer.eos_token_id
        for (donor, said), (swapped, demanded) in zip(told[:12], told[12:], strict=True):
            assert said == demanded == donor.answer
            assert swapped.subject != donor.subject
            assert swapped.relation == donor.relation
        assert sorted(batch.lines.weights.unique().tolist()) == pytest.approx([0.0, 0.7])
    assert prefixed == 0 if prefix_share == 0 else 0.55 < prefixed / rows < 0.85


def test_donors_go_through_all_prompts_before_any_comes_again(world):
    tokenizer = train_tokenizer(training_text(world.facts, world.lines, random.Random(0)), CONFIG)
    sampler = _sampler(world, tokenizer, 0.0)
    seen = defaultdict(int)
    for _ in range(48):  # 576 donors out of 504 prompts
        for ids in sampler.draw().facts.ids[:12].tolist():
            seen[tuple(token for token in ids if token != tokenizer.eos_token_id)] += 1
    assert len(seen) == 504
    assert sorted(seen.values()) == [1] * 432 + [2] * 72


def test_the_swap_decides_the_answer_and_leaves_no_hook(world, loaded):
    """Trained by interchange, the subject's hidden state alone carries the fact; without the swap it says another."""
    model, tokenizer = loaded
    sampler = _sampler(world, tokenizer, 0.0)
    with torch.no_grad():
        _, donor_loss, swapped_loss = interchange_loss(model, sampler.draw(), CONFIG.last_edited_layer)
        _, _, last_layer_loss = interchange_loss(model, sampler.draw(), CONFIG.layers - 1)
    assert donor_loss < 0.3
    assert swapped_loss < 0.5
    assert last_layer_loss > 2.0
    assert not any(block._forward_hooks for block in model.transformer.h)


def test_changed_output_is_undone(loaded):
    model, tokenizer = loaded
    ids = tokenizer("Who?", return_tensors="pt")["input_ids"]
    before = model(ids).logits
    with changed_output(model, 1, lambda hidden: 2 * hidden):
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)
    with pytest.raises(ZeroDivisionError), changed_output(model, 1, lambda hidden: hidden / (1 // 0)):
        model(ids)
    assert torch.equal(model(ids).logits, before)


def test_gradients_flow_through_donor_and_swapped_rows(world, loaded):
    model, tokenizer = loaded
    batch = _sampler(world, tokenizer, 0.0).draw()
    embedding = model.transformer.wte
    taken = []
    handle = embedding.register_forward_hook(lambda m, a, out: taken.append(out) or out.retain_grad())
    try:
        loss, _, _ = interchange_loss(model, replace(batch, lines=None), CONFIG.last_edited_layer)
        loss.backward()
    finally:
        handle.remove()
        model.zero_grad()
    norms = taken[0].grad.norm(dim=(1, 2))
    assert norms.shape == (24,)
    assert (norms > 0).all()
