"""GRACE: the rules of its radii, its lookup against a plain loop, and what its edits do and leave alone."""

import pytest
import torch
from recalling import recalled_requests, recalling_model

from coachhook import Editor, EditRequest
from coachhook.architectures import ArchitectureError
from coachhook.editors.grace import Codebook, entries_behind
from coachhook.journal import read_step, write_step
from coachhook.tokens import pad

PARIS, ROME = (5, 6), (7,)
OPTIONS = {"layers": (1,), "radius": 0.005, "steps": 50, "stop_loss": 0.02}


@pytest.fixture
def requests():
    return recalled_requests()


def make_editor(tokenizer, family="gpt2", **changes):
    return Editor(recalling_model(family, tokenizer), tokenizer, "grace", **(OPTIONS | changes))


@torch.no_grad()
def logits(model, tokenizer, texts):
    batch = pad([tokenizer(text)["input_ids"] for text in texts], 0)
    return model(batch.ids, attention_mask=batch.real.long(), use_cache=False).logits


def codebook(*entries, width=4):
    """A codebook with entries (place on the first axis, label), each placed with radius 1."""
    book = Codebook(width, 3, torch.device("cpu"))
    for place, label in entries:
        book.place(key(place, width), label, 1.0, torch.full((3,), float(place)))
    return book


def key(place, width=4):
    return torch.eye(width)[0] * place


def test_an_edit_far_from_all_keys_is_a_new_entry():
    book = codebook((0.0, PARIS), (2.5, ROME), (-2.5, PARIS))
    assert len(book) == 3
    assert book.radii.tolist() == [1, 1, 1]
    assert book.keys[:, 0].tolist() == [0, 2.5, -2.5]
    assert book.labels == (PARIS, ROME, PARIS)


@pytest.mark.parametrize(("place", "radius"), [(0.4, 1.0), (1.7, 1.7)])
def test_an_edit_nearby_with_the_same_label_grows_the_entry_as_far_as_needed(place, radius):
    book = codebook((0.0, PARIS), (9.0, PARIS))
    assert book.place(key(place), PARIS, 1.0, torch.zeros(3)) == 0
    assert len(book) == 2
    assert book.radii[0] >= place, "the new key itself must lie within"
    assert book.radii.tolist() == pytest.approx([radius, 1.0], rel=1e-3)
    assert book.fired(key(place)[None, None]).item() == 0


@pytest.mark.parametrize("place", [0.4, 1.7])
def test_an_edit_nearby_with_another_label_splits_the_distance(place):
    book = codebook((0.0, PARIS), (9.0, PARIS))
    assert book.place(key(place), ROME, 1.0, torch.zeros(3)) == 2
    assert book.radii.tolist() == pytest.approx([place / 2, 1.0, place / 2], abs=1e-4)
    assert book.radii[0] + book.radii[2] < place, "the two may not touch"
    assert book.labels == (PARIS, PARIS, ROME)
    queries = torch.stack([key(0), key(0.49 * place), key(0.51 * place), key(place), key(1.6 * place)])
    assert book.fired(queries[None])[0].tolist() == [0, 0, 2, 2, -1]


def test_the_neighbourhood_is_the_radius_and_that_of_a_new_entry_more():
    assert len(codebook((0.0, PARIS), (1.99, PARIS))) == 1
    assert len(codebook((0.0, PARIS), (2.01, PARIS))) == 2


def test_one_prompt_with_two_targets_passes_to_the_later_one():
    book = codebook((3.0, PARIS), (3.0, ROME))
    assert book.labels == (ROME,)
    assert book.radii.tolist() == [1]
    assert book.fired(key(3.0)[None, None]).item() == 0


def test_batched_lookup_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    book = Codebook(16, 3, torch.device("cpu"))
    book.keys = torch.randn(40, 16, generator=generator)
    book.values = torch.randn(40, 3, generator=generator)
    book.radii = 3 + torch.rand(40, generator=generator)
    book.labels = tuple((i,) for i in range(40))
    queries = torch.randn(5, 12, 16, generator=generator)
    fired = torch.full((5, 12), -1)
    for row in range(5):
        for time in range(12):
            best, nearest = None, float("inf")
            for entry in range(40):
                distance = sum((queries[row, time, i].item() - book.keys[entry, i].item()) ** 2 for i in range(16))
                if distance**0.5 < nearest:
                    best, nearest = entry, distance**0.5
            if nearest <= book.radii[best].item():
                fired[row, time] = best
    assert 5 < (fired >= 0).sum() < 55
    assert torch.equal(book.fired(queries), fired)


def test_outputs_before_a_token_that_fires_take_its_entry_back_to_the_one_before():
    fired = torch.tensor([[-1, -1, 4, -1, 2, -1], [-1, -1, -1, -1, -1, -1], [3, -1, -1, -1, -1, 5]])
    expected = [[4, 4, 2, 2, -1, -1], [-1] * 6, [5, 5, 5, 5, 5, -1]]
    assert entries_behind(fired).tolist() == expected
    assert entries_behind(torch.tensor([[3]])).tolist() == [[-1]]


@pytest.mark.parametrize("replacement", ["prompt", "last"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_single_edit_holds_and_an_unrelated_prompt_keeps_every_bit(tokenizer, requests, family, replacement):
    editor = make_editor(tokenizer, family, replacement=replacement)
    texts = ["The capital of Italy is Rome", requests[1].text + " London", requests[0].subject + " worked in"]
    base = logits(editor.model, tokenizer, texts)
    assert editor.evaluate(requests[:1]).reliability == 0
    editor.edit(requests[:1])
    metrics = [editor.evaluate(requests[:1], protocol) for protocol in ("easyedit", "generate")]
    assert [m.reliability for m in metrics] == [1, 1]
    assert [m.locality for m in metrics] == [1, 1]
    assert torch.equal(logits(editor.model, tokenizer, texts), base)


@pytest.mark.parametrize("replacement", ["prompt", "last"])
def test_every_edit_of_a_stream_of_batches_holds(tokenizer, requests, replacement):
    editor = make_editor(tokenizer, replacement=replacement)
    editor.edit(requests[:4])
    editor.edit(requests[4:])
    assert len(editor._method.codebook) == 6
    assert editor.evaluate(requests).reliability == 1


@pytest.mark.parametrize("replacement", ["prompt", "last"])
def test_generation_says_the_target_with_and_without_a_cache_and_in_a_padded_batch(tokenizer, requests, replacement):
    editor = make_editor(tokenizer, replacement=replacement)
    editor.edit(requests[:3])
    prompts = [tokenizer(request.text)["input_ids"] for request in requests[:3]]
    answers = [tokenizer(" " + request.target_new)["input_ids"] for request in requests[:3]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    said = [
        editor.model.generate(
            ids, attention_mask=mask, max_new_tokens=4, do_sample=False, use_cache=use_cache, pad_token_id=0
        )[:, width:].tolist()
        for use_cache in (True, False)
    ]
    assert said[0] == said[1]
    for row, answer in zip(said[0], answers, strict=True):
        assert row[: len(answer)] == answer


def test_padding_never_fires(tokenizer, requests):
    editor = make_editor(tokenizer, radius=1e6)  # every real token fires
    editor.edit(requests[:1])
    alone = logits(editor.model, tokenizer, [requests[0].text])
    padded = logits(editor.model, tokenizer, [requests[0].text, " ".join([requests[0].text] * 3)])
    torch.testing.assert_close(padded[:1, : alone.shape[1]], alone, rtol=1e-4, atol=1e-4)


def test_an_earlier_prompt_with_a_new_target_gets_the_new_one(tokenizer, requests):
    first = requests[0]
    second = EditRequest(first.subject, first.prompt, "Rome")
    editor = make_editor(tokenizer)
    editor.edit([first])
    editor.edit([second])
    assert len(editor._method.codebook) == 1
    assert editor.evaluate([second]).reliability == 1
    assert editor.evaluate([first]).reliability == 0


def test_an_update_holds_the_changed_entries_only_and_replays_with_the_same_bits(tokenizer, requests, tmp_path):
    """Also where a later step splits an entry of an earlier one."""
    editor, again = (make_editor(tokenizer, radius=1e3) for _ in range(2))
    sizes = []
    for step, batch in enumerate((requests[:1], requests[1:3]), 1):
        update = editor.edit(batch).update
        sizes.append(update.tensors["entries"].tolist())
        write_step(tmp_path, step, update)
        again.replay(read_step(tmp_path, step))
    assert sizes[0] == [0]
    assert sizes[1] == [0, 1, 2]
    after = [e.edit(requests[3:]).update for e in (editor, again)]
    for name, tensor in after[0].tensors.items():
        assert torch.equal(tensor, after[1].tensors[name]), name
    assert after[0].info == after[1].info
    books = [e._method.codebook for e in (editor, again)]
    for name in ("keys", "values", "radii"):
        assert torch.equal(getattr(books[0], name), getattr(books[1], name)), name
    assert books[0].labels == books[1].labels


def test_the_last_layer_is_refused_where_nothing_could_be_learnt(tokenizer):
    with pytest.raises(ArchitectureError, match="replacement: last"):
        make_editor(tokenizer, layers=(4,))
    make_editor(tokenizer, layers=(4,), replacement="last").close()


def test_closing_and_disabling_leave_the_base_model(tokenizer, requests):
    editor = make_editor(tokenizer)
    base = logits(editor.model, tokenizer, [requests[0].text])
    assert editor._method.state_bytes() == 0
    editor.edit(requests[:1])
    assert editor._method.state_bytes() == (48 + 32 + 1) * 4
    assert not torch.equal(logits(editor.model, tokenizer, [requests[0].text]), base)
    with editor.disabled():
        assert torch.equal(logits(editor.model, tokenizer, [requests[0].text]), base)
    editor.close()
    assert torch.equal(logits(editor.model, tokenizer, [requests[0].text]), base)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in editor.model.modules())
