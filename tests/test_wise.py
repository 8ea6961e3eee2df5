"""WISE: margins, merge and routing against plain loops, shards and their masks, and what edits do and leave alone."""

import pytest
import torch
from conftest import build_model
from recalling import PEOPLE, recalled_requests, recalling_model

from coachhook import Editor
from coachhook.architectures import ModelParts
from coachhook.editors.base import Update
from coachhook.editors.side_memory import margin_loss, routed, ties_merge
from coachhook.hyperparameters import HyperparameterError
from coachhook.journal import read_step, write_step
from coachhook.tokens import pad
from coachhook.tracing import rewrite_inputs

UNRELATED = (
    *(f"{person} worked in the city of Rome" for person in PEOPLE[2:]),
    "The capital of France is Paris.",
    "Where does the river run?",
)
LAYER = 1
OPTIONS = {
    "layers": (LAYER,),
    "steps": 100,
    "learning_rate": 0.3,
    "margins": (0.3, 1.5, 0.7),
    "mask_ratio": 0.5,
    "context_templates": ("The engine. ",),
    "unrelated_texts": UNRELATED,
}
QUICK = {"steps": 3}


@pytest.fixture
def requests():
    return recalled_requests()


def make_editor(tokenizer, family="gpt2", **changes):
    return Editor(recalling_model(family, tokenizer), tokenizer, "wise", **(OPTIONS | changes))


@torch.no_grad()
def logits(model, tokenizer, texts):
    batch = pad([tokenizer(text)["input_ids"] for text in texts], 0)
    return model(batch.ids, attention_mask=batch.real.long(), use_cache=False).logits


def random_matrices(count, rows=8, columns=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    return [m * (torch.rand(rows, columns, generator=generator) < 0.7) for m in matrices]


def literal_ties(deltas, weights, density):
    rows, columns = deltas[0].shape
    trimmed = []
    for delta in deltas:
        sizes = sorted((abs(x) for x in delta.flatten().tolist()), reverse=True)
        least = sizes[int(density * len(sizes)) - 1]
        trimmed.append([[x if abs(x) >= least else 0.0 for x in row] for row in delta.tolist()])
    merged = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            vote = sum(w * t[i][j] for w, t in zip(weights, trimmed, strict=True))
            agreeing = [(w, t[i][j]) for w, t in zip(weights, trimmed, strict=True) if t[i][j] * vote > 0]
            if agreeing:
                merged[i, j] = sum(w * x for w, x in agreeing) / sum(w for w, _ in agreeing)
    return merged


@pytest.mark.parametrize("density", [0.25, 0.53, 1.0])
@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.2, 0.2, 0.6)])
def test_ties_equals_the_plain_merge(density, weights):
    deltas = random_matrices(3)
    expected = literal_ties(deltas, weights, density)
    assert (ties_merge(deltas, weights, density) - expected).abs().max() < 1e-8
    assert 0 < (expected == 0).sum() < expected.numel()


def test_ties_by_hand():
    one = torch.tensor([[4.0, 3.0, -2.0, 0.1]])
    two = torch.tensor([[2.0, -5.0, 0.2, 3.0]])
    # 0.1 and 0.2 are trimmed; -5 outvotes 3; where one is left it keeps its full size
    assert ties_merge([one, two], [0.5, 0.5], 0.75).tolist() == [[3.0, -5.0, -2.0, 3.0]]


def test_the_margin_loss_equals_the_plain_sums():
    inside, outside, margins = [1.0, 6.0, 12.0], [0.5, 3.0], (2.0, 7.0, 5.0)
    a, b, g = margins
    groups = (
        [max(0, o - a) for o in outside],
        [max(0, b - i) for i in inside],
        [max(0, g - (i - o)) for i in inside for o in outside],
    )
    expected = sum(sum(group) / sum(x > 0 for x in group) for group in groups)
    assert expected == pytest.approx(1 + 3.5 + (4.5 + 7 + 2) / 3)
    loss = margin_loss(torch.tensor(inside), torch.tensor(outside), margins)
    assert loss.item() == pytest.approx(expected)


def test_the_margin_loss_is_nothing_where_all_margins_are_kept_and_without_unrelated_texts_only_b_counts():
    assert margin_loss(torch.tensor([9.0]), torch.tensor([1.0]), (2.0, 7.0, 5.0)) == 0
    assert margin_loss(torch.tensor([4.0]), torch.tensor([]), (2.0, 7.0, 5.0)) == 3


def test_the_most_active_memory_above_its_own_threshold_answers():
    activations = torch.tensor([[[1.0, 3.0, 3.0, 5.0]], [[1.5, 2.0, 4.0, 4.0]]])
    chosen = routed(activations, torch.tensor([3.0, 4.0]))
    assert chosen.tolist() == [[[0, 1, 0, 1]], [[0, 0, 1, 0]]]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_each_token_is_answered_by_the_most_active_memory_so_far_in_its_row(tokenizer, requests, padding):
    """The rewrite module's outputs against a loop over rows, tokens and memories."""
    ratio, generator = 0.8, torch.Generator().manual_seed(0)
    options = OPTIONS | {"save_every": 1, "merge_every": 9, "mask_ratio": 1.0, "routing_ratio": ratio}
    editor = Editor(build_model("gpt2"), tokenizer, "wise", **options)
    batch = tokenizer(
        [*(r.text for r in requests), *UNRELATED], padding=True, padding_side=padding, return_tensors="pt"
    )
    real = batch["attention_mask"].bool()
    parts, outputs = ModelParts(editor.model), []
    handle = parts.rewrite_module(LAYER).register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad(), rewrite_inputs(parts, [LAYER], stop=False) as keys:
        editor.model(**batch, use_cache=False)
        for _ in range(2):  # two shards with random ΔW, each opened by half of the tokens
            delta = torch.randn(32, 48, generator=generator)
            delta /= (keys[LAYER][real] @ delta.T).norm(dim=-1).median()
            pieces = {"pieces": [{"edits": 1, "activation": 1 / ratio}]}
            editor._method.replay(Update({"shard.0": delta.flatten()}, pieces))
        editor.model(**batch, use_cache=False)
    handle.remove()
    (base, answered), memories, chosen = outputs, editor._method.memories, []
    for row in range(len(real)):
        largest = [0.0] * len(memories)
        for time in range(real.shape[1]):
            if not real[row, time]:
                continue
            changes = [memory.delta @ keys[LAYER][row, time] for memory in memories]
            largest = [max(so_far, change.norm().item()) for so_far, change in zip(largest, changes, strict=True)]
            able = [i for i, memory in enumerate(memories) if largest[i] >= ratio * memory.activation]
            best = max(able, key=lambda i: largest[i], default=None)
            chosen.append(best)
            if best is None:
                assert torch.equal(answered[row, time], base[row, time])
            else:
                torch.testing.assert_close(answered[row, time], base[row, time] + changes[best], rtol=1e-4, atol=1e-5)
    counts = [chosen.count(which) for which in (None, 0, 1)]
    assert min(counts) > 3, counts


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_single_edit_holds(tokenizer, requests, family):
    editor = make_editor(tokenizer, family)
    assert editor.evaluate(requests[:1]).reliability == 0
    editor.edit(requests[:1])
    assert [editor.evaluate(requests[:1], protocol).reliability for protocol in ("easyedit", "generate")] == [1, 1]


def test_an_unrelated_prompt_keeps_every_bit(tokenizer, requests):
    editor = make_editor(tokenizer, "llama")
    texts = ["The capital of Italy is Rome", "The river is in the city of Paris"]
    base = logits(editor.model, tokenizer, texts)
    editor.edit(requests[:1])
    assert torch.equal(logits(editor.model, tokenizer, texts), base)


def test_margins_keep_edits_and_unrelated_texts_apart(tokenizer, requests):
    """With the likelihood alone their activations come out much closer."""
    ratios = []
    for margins in (OPTIONS["margins"], (1e9, 0.0, -1e9)):
        editor = make_editor(tokenizer, "llama", margins=margins)
        editor.edit(requests[:1])
        memory = editor._method.memories[0]
        batch = pad([tokenizer(text)["input_ids"] for text in UNRELATED], 0)
        with torch.no_grad(), rewrite_inputs(ModelParts(editor.model), [LAYER]) as keys:
            editor.model(batch.ids, attention_mask=batch.real.long(), use_cache=False)
        outside = ((keys[LAYER] @ memory.delta.T).norm(dim=-1) * batch.real).max(-1).values
        ratios.append(memory.activation / outside.mean().item())
    assert ratios[0] > 1.5 * ratios[1]


def test_a_shard_changes_its_share_of_the_elements_and_the_next_one_others(tokenizer, requests):
    editor = make_editor(tokenizer, mask_ratio=0.2, save_every=2, merge_every=4, **QUICK)
    changed = []
    for request in requests[:3]:
        editor.edit([request])
        changed.append(editor._method.memories[-1].delta != 0)
    assert changed[0].sum() == pytest.approx(0.2 * changed[0].numel(), rel=0.2)
    assert torch.equal(changed[0], changed[1])
    assert 0 < (changed[0] & changed[2]).sum() < 0.5 * changed[2].sum()


def test_no_element_grows_beyond_the_norm_constraint(tokenizer, requests):
    editor = make_editor(tokenizer, norm_constraint=0.01)
    editor.edit(requests[:2])
    assert editor._method.memories[0].delta.abs().max() == pytest.approx(0.01)


def test_shards_are_saved_and_merged_on_time_also_in_the_middle_of_a_batch(tokenizer, requests):
    merged, kept = (
        make_editor(tokenizer, save_every=2, merge_every=4, retrieve=retrieve, **QUICK) for retrieve in (False, True)
    )
    counts = []
    for batch in (requests[:3], requests[3:5], (requests * 2)[5:8]):
        for editor in (merged, kept):
            editor.edit(batch)
        counts.append([len(editor._method.memories) for editor in (merged, kept)])
    assert counts == [[2, 2], [2, 2], [1, 2]]  # after 3, 5 and 8 edits
    first, second = (memory.delta for memory in kept._method.memories)
    assert torch.equal(
        torch.tensor([m.activation for m in merged._method.memories]),
        torch.tensor([min(m.activation for m in kept._method.memories)]),
    )
    assert not torch.equal(first, second)
    assert merged._method.state_bytes() == first.nbytes
    assert kept._method.state_bytes() == 2 * first.nbytes


def test_a_merge_is_ties_of_its_shards_and_then_of_the_merged_memory_too(tokenizer, requests):
    editor = make_editor(tokenizer, save_every=1, merge_every=2, density=0.4, **QUICK)
    shards, merged = [], []
    for request in requests[:4]:
        delta = torch.zeros(32, 48, dtype=torch.float64)
        mask = editor._method._mask()
        delta[mask] = editor.edit([request]).update.tensors["shard.0"].double()
        shards.append(delta)
        merged.append(editor._method.memories[0].delta.double())
    first = literal_ties(shards[:2], [0.5, 0.5], 0.4)
    second = literal_ties([*shards[2:], first], [0.2, 0.2, 0.6], 0.4)
    torch.testing.assert_close(merged[1], first, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(merged[3], second, rtol=1e-5, atol=1e-8)


def test_generation_is_the_same_with_and_without_a_cache_and_padding(tokenizer, requests):
    editor = make_editor(tokenizer)
    editor.edit(requests[:1])
    prompts = [tokenizer(request.text)["input_ids"] for request in requests[:3]]
    prompts.append(tokenizer("The capital of Italy is")["input_ids"])
    width = max(map(len, prompts)) + 2
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    options["return_dict_in_generate"] = True
    runs = [
        editor.model.generate(ids, attention_mask=mask, use_cache=use_cache, **options) for use_cache in (True, False)
    ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for cached, plain in zip(runs[0].logits, runs[1].logits, strict=True):
        torch.testing.assert_close(cached, plain, rtol=1e-3, atol=1e-4)
    answer = tokenizer(" " + requests[0].target_new)["input_ids"]
    assert runs[0].sequences[0, width:].tolist()[: len(answer)] == answer
    del runs, cached, plain  # and with them the cache
    assert not editor._method._carried, "a cache that is gone is forgotten"


def test_texts_that_name_a_subject_of_the_batch_are_not_unrelated(tokenizer, requests):
    named = f"{requests[0].subject} lived in the city of Rome."
    updates = [
        make_editor(tokenizer, unrelated_texts=texts, **QUICK).edit(requests[:1]).update.tensors["shard.0"]
        for texts in (UNRELATED, (*UNRELATED, named), (*UNRELATED, "Alan Turing lived in the city of Rome."))
    ]
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(updates[2], updates[0], rtol=1e-2, atol=1e-5)


def test_replayed_steps_have_the_same_bits_and_go_on_alike(tokenizer, requests, tmp_path):
    editor, again = (make_editor(tokenizer, save_every=2, merge_every=2, **QUICK) for _ in range(2))
    for step, batch in enumerate((requests[:3], requests[3:4]), 1):
        write_step(tmp_path, step, editor.edit(batch).update)
        again.replay(read_step(tmp_path, step))
    updates = [e.edit(requests[4:]).update for e in (editor, again)]
    assert updates[0].info == updates[1].info
    for name, tensor in updates[0].tensors.items():
        assert torch.equal(tensor, updates[1].tensors[name])
    pairs = zip(editor._method.memories, again._method.memories, strict=True)
    assert all(torch.equal(a.delta, b.delta) and a.activation == b.activation for a, b in pairs)


def test_a_merge_in_the_middle_of_a_shard_is_refused(tokenizer):
    with pytest.raises(HyperparameterError, match="multiple of save_every"):
        make_editor(tokenizer, save_every=4, merge_every=6)


def test_closing_and_disabling_leave_the_base_model(tokenizer, requests):
    editor = make_editor(tokenizer, **QUICK)
    base = logits(editor.model, tokenizer, [requests[0].text])
    editor.edit(requests[:1])
    assert not torch.equal(logits(editor.model, tokenizer, [requests[0].text]), base)
    with editor.disabled():
        assert torch.equal(logits(editor.model, tokenizer, [requests[0].text]), base)
    editor.close()
    assert torch.equal(logits(editor.model, tokenizer, [requests[0].text]), base)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in editor.model.modules())
