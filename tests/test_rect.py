"""RECT against a literal choice of entries, entry by entry."""

import literal
import literal_locate
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.changes import add_in_order, dense
from coachhook.editors.rect import _masked, _pack, _unpack, largest_changes
from coachhook.targets import TargetSettings

PREFIXES = ("The river. ", "Many years ago in the engine. ")
TARGETS = TargetSettings(3, 0.05, 0.75, 0.0625, 0.5)
WEIGHT = 2.0
OPTIONS = {
    "layers": LAYERS,
    "covariance_weight": WEIGHT,
    "context_templates": PREFIXES,
    "target_steps": TARGETS.steps,
    "target_lr": TARGETS.learning_rate,
}


def make_editor(model, tokenizer, covariances, method="rect", **changes):
    return Editor(model, tokenizer, method, covariances[model.config.model_type], **(OPTIONS | changes))


def literal_rect(change, weight, share):
    """Δ with all but the top share of entries by |Δ_ij / (W_ij + 1e-8)| set to zero."""
    entries = [(i, j) for i in range(change.shape[0]) for j in range(change.shape[1])]
    entries.sort(key=lambda at: abs(change[at].item() / (weight[at].item() + 1e-8)), reverse=True)
    kept = torch.zeros_like(change)
    for at in entries[: round(share * len(entries))]:
        kept[at] = change[at]
    return kept


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_the_choice_is_the_literal_one(share):
    change, weight = draw(8, 21, seed=0), draw(8, 21, seed=1)
    mine = torch.where(largest_changes(change, weight, share), change, 0.0)
    assert torch.equal(mine, literal_rect(change, weight, share))


def test_the_choice_is_kept_in_one_bit_an_entry():
    kept = draw(5, 13, seed=2) > 0.3
    packed = _pack(kept)
    assert packed.nbytes == 9
    assert torch.equal(_unpack(packed, kept.float()), kept)


@pytest.mark.parametrize(("rows", "columns"), [(5, 13), (300, 21)])
def test_the_change_is_masked_block_by_block_as_it_is_whole(rows, columns):
    change, kept = draw(rows, columns, seed=0), draw(rows, columns, seed=1) > 0.3
    masked = _masked(dense(change), _pack(kept))
    assert torch.equal(add_in_order(torch.zeros_like(change), [masked]), torch.where(kept, change, 0.0))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_steps_equal_two_literal_steps(family, tokenizer, requests, covariances):
    """The change is measured against the weight that the step finds: the second step, against an edited one."""
    model, plain = build_model(family).double(), build_model(family).double()
    editor = make_editor(model, tokenizer, covariances)
    deltas = literal_locate.start(plain, LAYERS)

    def update(layer, keys, residuals):
        change = literal.dense_update(covariances[family].matrices[layer], WEIGHT, None, keys, residuals)
        return literal_rect(change, literal.base_weight(plain, layer).double() + deltas[layer], 0.4)

    for batch in (requests[:3], requests[3:]):
        editor.edit(batch)
        literal_locate.step(plain, tokenizer, batch, deltas, PREFIXES, TARGETS, update)
        for layer, delta in deltas.items():
            mine = editor._method.hooks[layer].dense()
            assert ((mine != 0) != (delta != 0)).float().mean() < 0.002  # entries at the very border
            assert (mine - delta).norm() <= 1e-2 * delta.norm()
            assert delta.norm() > 1e-3 * literal.base_weight(plain, layer).norm()


def test_with_every_entry_it_is_memit(tokenizer, requests, covariances):
    rect = make_editor(build_model("gpt2"), tokenizer, covariances, kept_share=1.0)
    memit = make_editor(build_model("gpt2"), tokenizer, covariances, "memit")
    for batch in (requests[:3], requests[3:]):
        rect.edit(batch)
        memit.edit(batch)
    for layer in LAYERS:
        assert torch.equal(rect._method.hooks[layer].dense(), memit._method.hooks[layer].dense())


def test_a_replayed_step_has_the_same_bits_and_goes_on_alike(tokenizer, requests, covariances):
    editor, again = (make_editor(build_model("llama"), tokenizer, covariances) for _ in range(2))
    update = editor.edit(requests[:3]).update
    for layer in LAYERS:
        share = (editor._method.hooks[layer].dense() != 0).float().mean().item()
        assert share == pytest.approx(0.4, abs=1e-3)
        assert {name for name in update.tensors if name.endswith(f".{layer}")} == {
            f"left.{layer}",
            f"right.{layer}",
            f"kept.{layer}",
        }
    again.replay(update)
    for one in (editor, again):
        one.edit(requests[3:])
    for layer in LAYERS:
        assert torch.equal(editor._method.hooks[layer].dense(), again._method.hooks[layer].dense())
