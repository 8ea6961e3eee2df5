import copy
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import build_model
from test_editors import logits, make_editor

from coachhook import Editor, Probe
from coachhook.covariance import CovarianceError
from coachhook.errors import CoachHookError
from coachhook.journal import JournalError


@pytest.fixture
def editor(tokenizer, covariances, requests):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "coachhook", alpha=1.0, target_steps=1)
    for batch in (requests[:3], requests[3:5]):
        editor.edit(batch)
    return editor


def refused(words, directory, model=None, error=JournalError):
    """One line that says `words`, with the model left free."""
    model = build_model("gpt2") if model is None else model
    with pytest.raises(error, match=words) as caught:
        Editor.from_pretrained(directory, model)
    assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks for module in model.modules())


def change_index(directory, **changes):
    path = directory / "edits.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_saved_is_readable_and_no_pickle(editor, requests, tmp_path):
    editor.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "edits.json").read_text())
    assert (index["format"], index["method"], index["layers"], index["gate"]) == (1, "coachhook", [1, 2], "paper")
    assert index["hyperparameters"] == json.loads(editor.config.model_dump_json())
    assert index["base_model"]["family"] == "gpt2"
    prompts = [[record["prompt"] for record in step["requests"]] for step in index["steps"]]
    assert prompts == [[request.prompt for request in batch] for batch in (requests[:3], requests[3:5])]
    assert [step["file"][:6] for step in index["steps"]] == ["000001", "000002"]
    endings = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert endings == {".json", ".safetensors"}


def test_requests_come_back(editor, requests, tmp_path):
    follows = Probe("What follows is", "Oslo", "portability")
    editor.edit([replace(requests[5], portability=[follows])])
    editor.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"))
    for step, original in zip(loaded.journal, editor.journal, strict=True):
        assert (step.requests, step.time) == (original.requests, original.time)
        assert step.update.info == original.update.info


def test_the_base_model_is_loaded_by_its_name(tokenizer, covariances, requests, tmp_path):
    build_model("llama").save_pretrained(tmp_path / "base")
    model = type(build_model("llama")).from_pretrained(tmp_path / "base")
    editor = make_editor(model, tokenizer, covariances, "memit", target_steps=1)
    editor.edit(requests[:2])
    editor.save_pretrained(tmp_path / "edits")
    loaded = Editor.from_pretrained(tmp_path / "edits")
    assert loaded.model is not model
    assert torch.equal(logits(loaded.model, loaded.tokenizer, requests), logits(model, tokenizer, requests))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(JournalError, match=r"base cannot be loaded .*; give the model itself"):
        Editor.from_pretrained(tmp_path / "edits")


def test_a_base_model_without_a_name_must_be_given(editor, tmp_path):
    editor.save_pretrained(tmp_path)
    with pytest.raises(JournalError, match="no name of their base model; give the model itself"):
        Editor.from_pretrained(tmp_path)


def test_another_base_model_is_refused_with_what_differs(editor, tmp_path):
    editor.save_pretrained(tmp_path)
    refused("another base model .*family gpt2, not llama", tmp_path, build_model("llama"))
    refused("another base model .*other weights at layers 0, 1, 2, 3, 4", tmp_path, build_model("gpt2", seed=1))
    refused("dtype float32, not float64", tmp_path, build_model("gpt2").double())
    changed = build_model("gpt2")
    with torch.no_grad():
        changed.transformer.h[2].mlp.c_proj.weight[0, 0] += 1e-3
    refused(r"\(other weights at layers 2\)", tmp_path, changed)


def test_settings_that_change_the_answers_are_named_and_others_do_not_count(editor, tmp_path):
    editor.save_pretrained(tmp_path)
    changed = build_model("gpt2")
    changed.config.layer_norm_epsilon = 0.1
    changed.config.activation_function = "relu"
    refused("activation_function gelu_new, not relu; layer_norm_epsilon 1e-05, not 0.1", tmp_path, changed)
    same = build_model("gpt2")
    same.config.update({"use_cache": False, "resid_pdrop": 0.3, "pad_token_id": 3, "name_or_path": "elsewhere"})
    same.resize_token_embeddings(410)
    Editor.from_pretrained(tmp_path, same).close()


def test_a_base_model_with_other_weights_elsewhere_is_refused(editor, tmp_path):
    """Only rewrite modules of the edited layers are digested whole; of the rest of each block, a sample."""
    editor.save_pretrained(tmp_path)
    tuned = build_model("gpt2")
    with torch.no_grad():
        tuned.transformer.h[4].attn.c_attn.weight.mul_(1.001)
    refused(r"\(other weights at layers 4\)", tmp_path, tuned)
    for name in ("wte.weight", "wpe.weight", "ln_f.bias"):
        other = build_model("gpt2")
        with torch.no_grad():
            other.transformer.get_parameter(name).add_(0.1)
        refused(r"\(other weights outside of the layers \(embeddings, head or final norm\)\)", tmp_path, other)


def test_settings_in_groups_count_too(tokenizer, covariances, tmp_path):
    make_editor(build_model("llama"), tokenizer, covariances, "memit").save_pretrained(tmp_path)
    other = build_model("llama")
    other.config.rope_parameters = {**other.config.rope_parameters, "rope_type": "linear", "factor": 4.0}
    refused("rope_parameters .*default.*, not .*linear", tmp_path, other)
    Editor.from_pretrained(tmp_path, build_model("llama")).close()


def test_loading_at_a_step_is_having_stopped_there(editor, requests, tokenizer, tmp_path):
    editor.edit(requests[5:])
    editor.save_pretrained(tmp_path)
    for step in (3, 2, 1, 0):
        editor.rollback(step)
        loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"), step=step)
        assert loaded.step == step
        assert loaded.thresholds() == editor.thresholds()
        assert torch.equal(logits(loaded.model, tokenizer, requests), logits(editor.model, tokenizer, requests))
    for step in (-1, 4):
        with pytest.raises(JournalError, match=f"step: {step} is not between 0 and 3, the steps saved in"):
            Editor.from_pretrained(tmp_path, build_model("gpt2"), step=step)


def test_metrics_are_kept_where_they_were_recorded(editor, requests, tmp_path):
    measured = editor.evaluate(requests[3:5])
    assert all(step.metrics == {} for step in editor.journal)
    editor.record(measured)
    editor.record(editor.evaluate(requests[3:5], "rome"), "rome")
    editor.record(measured, step=1)
    for step in (0, 3):
        with pytest.raises(CoachHookError, match=f"step: {step} is not between 1 and 2, the steps applied"):
            editor.record(measured, step=step)
    editor.save_pretrained(tmp_path)
    first, last = Editor.from_pretrained(tmp_path, build_model("gpt2")).journal
    assert first.metrics == {"easyedit": measured.row()}
    assert set(last.metrics) == {"easyedit", "rome"}
    assert last.metrics == editor.journal[1].metrics
    assert json.loads((tmp_path / "edits.json").read_text())["steps"][1]["metrics"]["easyedit"] == measured.row()


def test_fields_that_a_later_version_adds_are_passed_over(editor, requests, tokenizer, tmp_path):
    editor.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "edits.json").read_text())
    for part in (index, index["base_model"], *index["steps"]):
        part["later"] = {"of": "another version"}
    change_index(tmp_path, **index)
    loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"))
    assert torch.equal(logits(loaded.model, tokenizer, requests), logits(editor.model, tokenizer, requests))


def test_so_are_those_of_requests_and_probes(editor, requests, tmp_path):
    editor.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "edits.json").read_text())
    for step in index["steps"]:
        for request in step["requests"]:
            for part in (request, *request["locality"]):
                part["later"] = "than this"
    change_index(tmp_path, **index)
    refused("the requests of 000001-.* are damaged", tmp_path)  # no version so far writes that
    change_index(tmp_path, coachhook="99.1")
    loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"))
    assert [step.requests for step in loaded.journal] == [tuple(requests[:3]), tuple(requests[3:5])]


def test_what_an_earlier_version_did_not_write_is_not_asked_for(editor, tmp_path):
    editor.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "edits.json").read_text())
    del (
        index["base_model"]["blocks"],
        index["base_model"]["settings"],
        index["base_model"]["around"],
        index["covariance"],
    )
    for step in index["steps"]:
        del step["metrics"]
    change_index(tmp_path, **index)
    loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"))
    assert [step.metrics for step in loaded.journal] == [{}, {}]


def test_a_large_batch_is_stored_dense_and_answers_and_rolls_back_alike(tokenizer, covariances, requests, tmp_path):
    """From 32·48 / (32 + 48) = 19.2 requests on, factors would be larger than ΔW."""
    batch = requests * 4
    for method in ("memit", "rect"):
        editor = make_editor(build_model("gpt2"), tokenizer, covariances, method, target_steps=1)
        shown = []
        for step_requests in (requests[:2], batch, requests[2:3]):
            update = editor.edit(step_requests).update
            shown.append(logits(editor.model, tokenizer, requests))
            kinds = {name.partition(".")[0] for name in update.tensors}
            assert ("delta" in kinds) == (len(step_requests) > 19)
            assert ("left" in kinds) == (len(step_requests) < 20)
        editor.save_pretrained(tmp_path / method)
        loaded = Editor.from_pretrained(tmp_path / method, build_model("gpt2"))
        for step in (3, 2, 1):
            loaded.rollback(step)
            assert torch.equal(logits(loaded.model, tokenizer, requests), shown[step - 1])


def test_a_saved_directory_is_not_larger_than_its_factors(tokenizer, covariances, requests, tmp_path):
    editor = make_editor(build_model("gpt2"), tokenizer, covariances, "coachhook", target_steps=1)
    for _ in range(20):
        editor.edit(requests[:5])
    editor.save_pretrained(tmp_path)
    factors = 20 * 5 * 2 * (32 + 2 * 48) * 4  # steps · requests · layers · widths of residual, gain and key · bytes
    steps = sum(path.stat().st_size for path in tmp_path.glob("0*.safetensors"))
    assert factors < steps < factors + 20 * 1000
    assert (tmp_path / "edits.json").stat().st_size < 20 * 5 * 1500


def test_a_newer_format_is_refused(editor, tmp_path):
    editor.save_pretrained(tmp_path)
    change_index(tmp_path, format=2, steps="of another kind")
    refused(r"edits\.json: format 2 is newer than 1.*; update coachhook", tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 0}', '{"format": "x"}'])
def test_a_damaged_index_is_named(editor, tmp_path, content):
    editor.save_pretrained(tmp_path)
    (tmp_path / "edits.json").write_text(content)
    refused(r"edits\.json: damaged \(.*\); save the edits again", tmp_path)


def test_a_directory_without_index_is_refused(tmp_path):
    refused(r"edits\.json: no such file", tmp_path)
    refused(r"edits\.json: no such file", tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_step_is_named(editor, tmp_path, damage):
    editor.save_pretrained(tmp_path)
    path = next(tmp_path.glob("000002-*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-9])
    if damage == "missing":
        path.unlink()
    refused(rf"{path.name}: missing or damaged; save the edits again", tmp_path)


def test_a_damaged_request_is_named(editor, tmp_path):
    editor.save_pretrained(tmp_path)
    steps = json.loads((tmp_path / "edits.json").read_text())["steps"]
    for record in ({"subject": "Ada"}, {**steps[1]["requests"][0], "targte": "Paris"}):
        steps[1]["requests"] = [record]
        change_index(tmp_path, steps=steps)
        refused(r"edits\.json: the requests of 000002-.* are damaged", tmp_path)


def test_a_step_outside_the_directory_is_not_read(editor, tmp_path):
    editor.save_pretrained(tmp_path / "a")
    index = json.loads((tmp_path / "a" / "edits.json").read_text())
    name = index["steps"][0]["file"]
    shutil.move(tmp_path / "a" / name, tmp_path / name)
    index["steps"][0]["file"] = f"../{name}"
    change_index(tmp_path / "a", **index)
    refused("missing or damaged", tmp_path / "a")


def test_an_earlier_save_is_whole_until_the_new_one_is(editor, requests, tokenizer, tmp_path, monkeypatch):
    """Rolled back and edited anew, step 2 is another; a save killed at any file leaves the earlier one loadable."""
    editor.save_pretrained(tmp_path)
    before = logits(editor.model, tokenizer, requests)
    editor.rollback(1)
    editor.edit(requests[5:])
    after = logits(editor.model, tokenizer, requests)
    assert not torch.equal(before, after)
    replace = os.replace
    for kept in ("000002", "edits.json"):

        def killed(source, target, kept=kept):
            if target.name.startswith(kept):
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            editor.save_pretrained(tmp_path)
        loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"))
        assert torch.equal(logits(loaded.model, tokenizer, requests), before)
    monkeypatch.undo()
    (tmp_path / "notes.txt").write_text("ours")
    editor.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"))
    assert torch.equal(logits(loaded.model, tokenizer, requests), after)
    kinds = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert kinds == ["000001", "000002", "edits.json", "notes.txt", "tokenizer"]


def test_a_loaded_editor_edits_further_with_its_covariance(editor, covariances, requests, tmp_path):
    editor.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path, build_model("gpt2"))
    with pytest.raises(CovarianceError, match=r"method coachhook needs one to edit further; .*covariance=") as caught:
        loaded.edit(requests[5:])
    assert "\n" not in str(caught.value)
    assert loaded.step == 2
    again = Editor.from_pretrained(tmp_path, build_model("gpt2"), covariance=covariances["gpt2"])
    given, expected = again.edit(requests[5:]), editor.edit(requests[5:])
    assert given.thresholds == expected.thresholds
    assert all(torch.equal(given.update.tensors[name], tensor) for name, tensor in expected.update.tensors.items())


@pytest.mark.parametrize("step", [-1, 3])
def test_only_steps_there_can_be_rolled_back_to(editor, step):
    with pytest.raises(CoachHookError, match=f"to_step: {step} is not between 0 and 2"):
        editor.rollback(step)
    assert editor.step == 2


def test_two_editors_on_one_model_are_refused(editor, tokenizer, covariances, requests, tmp_path):
    editor.save_pretrained(tmp_path)
    before = logits(editor.model, tokenizer, requests)
    with pytest.raises(CoachHookError, match=r"close\(\) that one first \(it is Editor.of\(model\)\)"):
        make_editor(editor.model, tokenizer, covariances, "memit")
    with pytest.raises(CoachHookError, match="another editor is on it"):
        Editor.from_pretrained(tmp_path, editor.model)
    assert torch.equal(logits(editor.model, tokenizer, requests), before)
    assert Editor.of(editor.model) is editor
    assert Editor.of(copy.deepcopy(editor.model)) is None
    editor.close()
    assert Editor.of(editor.model) is None
    other = make_editor(editor.model, tokenizer, covariances, "memit")
    editor.close()  # again: the other one stays
    with pytest.raises(CoachHookError, match="another editor is on it"):
        make_editor(editor.model, tokenizer, covariances, "memit")
    other.close()


def test_a_closed_editor_neither_edits_nor_rolls_back(editor, requests):
    update = editor.journal[0].update
    editor.close()
    for act in (lambda: editor.edit(requests), lambda: editor.rollback(0), lambda: editor.replay(update)):
        with pytest.raises(CoachHookError, match="the editor is closed"):
            act()


def test_a_trained_editor_is_asked_for_and_refused_by_name(tokenizer, tmp_path):
    model = build_model("gpt2")
    for method, path, words in [
        ("mend", None, "trained_editor: method mend needs one"),
        ("serac", tmp_path / "none", r"trained_editor: .*none is not a file"),
        ("ft-m", tmp_path, "trained_editor: method ft-m takes none; leave it out"),
    ]:
        with pytest.raises(CoachHookError, match=words) as caught:
            Editor(model, tokenizer, method, trained_editor=path, layers=(1,))
        assert "\n" not in str(caught.value)
