import pytest
import torch
from conftest import LAYERS, build_model
from families import starcoder
from test_editors import OPTIONS, PREFIXES, deltas, make_editor

from coachhook import Editor, EditRequest, Probe, compute_covariance
from coachhook.covariance import write_covariance
from coachhook.errors import CoachHookError

QUICK = {"target_steps": 1, "context_templates": ()}


def untouched(model):
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def refused(words, model, tokenizer, method="coachhook", covariance=None, **options):
    """One line that says `words`, before anything is done to the model."""
    with pytest.raises(CoachHookError, match=words) as caught:
        Editor(model, tokenizer, method, covariance, **options)
    assert "\n" not in str(caught.value)
    assert untouched(model)


@pytest.fixture
def gpt2():
    return build_model("gpt2")


@pytest.fixture
def matrices(covariances):
    return dict(covariances["gpt2"].matrices)


@pytest.fixture
def file(covariances, tmp_path):
    path = tmp_path / "covariance.safetensors"
    write_covariance(covariances["gpt2"], path)
    return path


def test_an_unknown_method_is_refused_with_the_known_ones(gpt2, tokenizer, matrices):
    refused("'coachhok' is unknown; use one of coachhook, ", gpt2, tokenizer, "coachhok", matrices)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lamda": 3}, "lamda: extra inputs are not permitted.*covariance_weight"),
        ({"alpha": "high"}, "alpha: .*number.*'high'"),
        ({"covariance_weight": 0}, "covariance_weight: .*greater than 0.*got 0"),
        ({"covariance_weight": float("nan")}, "covariance_weight: "),
        ({"past_weight": "none"}, "past_weight: "),
        ({"past_weight": -1.0}, "past_weight: .*greater than or equal to 0"),
        ({"gate": "papier"}, "gate: .*'paper'"),
        ({"target_steps": 0}, "target_steps: "),
        ({"layers": ()}, "layers: "),
        ({"layers": (2, 1)}, "layers: .*ascending"),
        ({"layers": 1}, "layers: "),
    ],
    ids=str,
)
def test_bad_hyperparameters_are_refused_by_name(gpt2, tokenizer, matrices, options, words):
    refused(words, gpt2, tokenizer, "coachhook", matrices, **options)


def test_bad_layers_are_refused_with_a_file_too(gpt2, tokenizer, file):
    refused("layers: ", gpt2, tokenizer, "coachhook", file, layers=1)
    refused(r"holds layers \[1, 2\], not \[99\]", gpt2, tokenizer, "coachhook", file, layers=(1, 99))


@pytest.mark.parametrize("layer", [5, 99, -1])
def test_a_layer_out_of_range_is_refused(gpt2, tokenizer, matrices, layer):
    words = f"layers: {layer} does not exist, the model has layers 0 to 4"
    layers = sorted({1, layer})
    refused(words, gpt2, tokenizer, "coachhook", matrices | {layer: torch.eye(48)}, layers=layers)
    refused(words, gpt2, tokenizer, "ft-m", layers=layers)


def test_methods_that_need_a_covariance_say_so(gpt2, tokenizer):
    for method in ("coachhook", "coachhook-nohook", "memit"):
        refused(f"method {method} needs one; make it with compute_covariance", gpt2, tokenizer, method)


def test_a_method_without_covariance_wants_its_layers_named(gpt2, tokenizer):
    refused("layers: field required", gpt2, tokenizer, "ft-m")


def test_a_covariance_of_another_width_is_refused(gpt2, tokenizer, matrices):
    matrices[2] = torch.eye(40)
    refused("layer 2 is 40 wide, the model's keys are 48 wide", gpt2, tokenizer, "coachhook", matrices)


def test_a_covariance_without_a_layer_is_refused(gpt2, tokenizer, matrices):
    refused(r"layers \[1, 2\], not 3; compute it", gpt2, tokenizer, "coachhook", matrices, layers=(2, 3))


def test_an_unusable_matrix_is_refused(gpt2, tokenizer, matrices):
    bad = matrices | {2: torch.full((48, 48), torch.nan)}
    refused("layer 2 holds NaN", gpt2, tokenizer, "coachhook", bad, **QUICK)
    bad = matrices | {2: torch.ones(48, 48)}
    refused("not positive definite", gpt2, tokenizer, "coachhook", bad, **QUICK)


def test_a_covariance_of_another_model_is_refused(tokenizer, file):
    refused("another model", build_model("gpt2", seed=3), tokenizer, "coachhook", file)


def test_a_damaged_file_is_refused(gpt2, tokenizer, file):
    file.write_bytes(file.read_bytes()[:-100])
    refused("cannot be read.*compute it again", gpt2, tokenizer, "coachhook", file)


def test_an_unknown_family_is_refused(tokenizer, matrices):
    refused("'starcoder2' is unknown: found blocks model.layers", starcoder(), tokenizer, "coachhook", matrices)


def nothing_edited(editor, requests, words):
    before = {layer: delta.clone() for layer, delta in deltas(editor).items()}
    step, thresholds = editor.step, editor.thresholds()
    with pytest.raises(CoachHookError, match=words) as caught:
        editor.edit(requests)
    assert "\n" not in str(caught.value)
    assert editor.step == step
    assert editor.thresholds() == thresholds
    assert all(torch.equal(delta, before[layer]) for layer, delta in deltas(editor).items())


def test_an_empty_batch_is_refused(gpt2, tokenizer, covariances, requests):
    editor = make_editor(gpt2, tokenizer, covariances, "coachhook", **QUICK)
    editor.edit(requests[:2])
    nothing_edited(editor, [], "there are no requests; give at least one")


def test_a_prompt_longer_than_the_context_is_refused(tokenizer, requests, covariances):
    for family in ("gpt2", "llama"):
        editor = make_editor(build_model(family), tokenizer, covariances, "coachhook", **QUICK)
        editor.edit(requests[:2])
        long = EditRequest("Rome", "river " * 80 + "{} is", "Paris", case_id=17)
        words = r"record 2 \(case_id 17\): prompt: \d+ tokens.*context holds 64; shorten it"
        nothing_edited(editor, [requests[0], long], words)


def test_a_prompt_that_does_not_fit_behind_the_prefixes_is_refused(tokenizer, requests, covariances):
    request = EditRequest("Rome", "river " * 20 + "{} is", "Paris")
    lengths = [len(tokenizer(prefix + request.text)["input_ids"]) for prefix in ("", PREFIXES[1])]
    model = build_model("gpt2")
    model.config.n_positions = lengths[0] + 8
    assert model.config.n_positions < lengths[1] + 1
    editor = make_editor(model, tokenizer, covariances, "coachhook", target_steps=1)
    nothing_edited(editor, [request], "prompt: .*shorten it")


def test_a_probe_longer_than_the_context_is_named(gpt2, tokenizer, requests, covariances):
    editor = make_editor(gpt2, tokenizer, covariances, "coachhook", **QUICK)
    probe = Probe("river " * 80, "Rome")
    bad = EditRequest("Rome", "{} is", "Paris", locality=(probe,))
    with pytest.raises(CoachHookError, match=r"record 2.*context holds 64; shorten it"):
        editor.evaluate([requests[0], bad])


def test_layers_default_to_the_covariances(gpt2, tokenizer, file, matrices):
    for covariance in (file, matrices):
        editor = Editor(gpt2, tokenizer, "coachhook", covariance, context_templates=())
        assert editor.config.layers == LAYERS
        editor.close()


def test_a_file_and_its_matrices_give_the_same_edits(tokenizer, requests, covariances, file):
    given = []
    for covariance in (file, dict(covariances["gpt2"].matrices), covariances["gpt2"]):
        editor = Editor(build_model("gpt2"), tokenizer, "coachhook", covariance, **options())
        editor.edit(requests[:2])
        given.append(deltas(editor))
    for layer, delta in given[0].items():
        assert torch.equal(given[1][layer], delta)
        assert torch.equal(given[2][layer], delta)


def options():
    return {name: value for name, value in OPTIONS.items() if name != "steps"} | {"target_steps": 1}


def test_the_same_seed_gives_the_same_prefixes_and_leaves_the_random_state(gpt2, tokenizer, matrices):
    state = torch.random.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        editor = Editor(gpt2, tokenizer, "coachhook", matrices, seed=seed)
        found.append(editor._method.prefixes)
        editor.close()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 5
    assert all(prefix.endswith(". ") for prefix in found[0])


def test_evaluate_compares_with_the_base_model(tokenizer, requests, covariances):
    editor = make_editor(build_model("gpt2").double(), tokenizer, covariances, "coachhook-nohook")
    before = editor.evaluate(requests)
    assert before.locality == before.locality_same_subject == 1.0
    for _ in range(3):
        editor.edit(requests[:1])
    after = editor.evaluate(requests[:1])
    assert after.reliability >= before.reliability
    assert 0 <= after.generality <= 1


@pytest.mark.parametrize("method", ["coachhook", "coachhook-nohook", "ft-m"])
def test_the_edited_model_generates_with_and_without_cache(family, tokenizer, requests, covariances, method):
    model = build_model(family).double()
    ids = torch.tensor([tokenizer(requests[2].text)["input_ids"]])
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    base = model.generate(ids, attention_mask=mask, **settings)
    editor = make_editor(model, tokenizer, covariances, method, alpha=1.0, learning_rate=1e-2)
    editor.edit(requests[:3])
    for hook in editor._method.hooks:
        hook.add(20 * hook.dense())  # so that even a small model's words change
    cached, whole = (
        editor.model.generate(ids, attention_mask=mask, use_cache=use_cache, **settings) for use_cache in (True, False)
    )
    assert cached.shape == whole.shape == (1, ids.shape[1] + 8)
    assert not torch.equal(whole, base)
    if method != "coachhook":  # without a gate, a token's output depends on nothing behind it
        assert torch.equal(cached, whole)
    with editor.disabled():
        assert torch.equal(model.generate(ids, attention_mask=mask, **settings), base)


def test_two_streams_on_one_machine_do_not_meet(tokenizer, requests, covariances):
    """Editors on two models share nothing."""
    first = make_editor(build_model("gpt2"), tokenizer, covariances, "coachhook", **QUICK)
    second = make_editor(build_model("gpt2"), tokenizer, covariances, "coachhook", **QUICK)
    first.edit(requests[:2])
    assert all(delta.norm() == 0 for delta in deltas(second).values())
    assert second.thresholds() == dict.fromkeys(LAYERS, 2.2)


def test_a_covariance_computed_in_place_serves_at_once(gpt2, tokenizer, requests):
    generator = torch.Generator().manual_seed(0)
    words = [request.subject for request in requests] + ["river", "engine", "born", "moth", "city"]
    drawn = torch.randint(len(words), (40, 10), generator=generator)
    texts = [" ".join(words[i] for i in row) for row in drawn]
    covariance = compute_covariance(gpt2, tokenizer, texts, LAYERS)
    editor = Editor(gpt2, tokenizer, "coachhook", covariance, **QUICK)
    assert editor.edit(requests).step == 1
    assert repr(editor) == "Editor(method='coachhook', step=1, layers=[1, 2])"
