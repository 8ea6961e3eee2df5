"""What the comparison of gates measures, against the same asked of the editor by hand."""

from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, build_model

from coachhook import Editor
from coachhook.covariance import compute_covariance, read_covariance
from coachhook.gate_comparison import FILLERS, SKETCHES, compare_gates
from coachhook.gate_variants import FRACTIONS, RATES, SHARPNESS
from coachhook.gates import NoGate
from coachhook.key_retrieval import KeyRetrieval
from coachhook.keys import encode_edit
from coachhook.leverage import background_quantile, prior_sketch
from coachhook.solver import FactoredLeastSquares
from coachhook.stream import StreamConfig
from coachhook.stream_draw import draw_requests
from coachhook.texts import TextError
from coachhook.tracing import rewrite_inputs

TEXTS = [
    f"{name} walked {way} to the {place} and sat down."
    for name in ("Ada", "Eva", "Ida", "Ola")
    for way in ("slowly", "quickly", "gladly", "alone")
    for place in ("river", "market", "old tower", "house", "mill")
]
TEXTS += ["Ola met Alan Turing at the mill.", "All Hoppers know Grace Hopper.", "Italy, said Ola, is not France."]
EDITED = {80: [(8, 19)], 81: [(17, 29)], 82: [(0, 5), (24, 30)]}  # where these texts name an edited subject
SCORES = ("reliability", "generality", "locality", "locality_same_subject")
VALUES = {"layers": list(LAYERS), "covariance_weight": 0.05, "target_steps": 5, "clamp": 20.0, "context_templates": 1}
OWN = {"false_positive_rate": 0.2, "edited_fraction": 0.6}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("gates")
    model = build_model("gpt2")
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    read = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS[:60])
    compute_covariance(model, tokenizer, TEXTS, LAYERS, out=root / "c.safetensors", max_tokens=read, background=200)
    return root / "model", root / "c.safetensors"


def config(method, **values):
    names = {"edits": 6, "batch_size": 2, "evaluate_every": 2, "seed": 3}
    return StreamConfig(method=method, hyperparameters=VALUES | values, **names)


@pytest.fixture(scope="module")
def compared(inputs, requests):
    return compare_gates(config("coachhook-leverage", **OWN), requests, *inputs, TEXTS, device="cpu")


@pytest.fixture(scope="module")
def editor(inputs, requests, tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(inputs[0])
    editor = Editor(model, tokenizer, "coachhook-leverage", inputs[1], seed=3, **VALUES, **OWN)
    stream = draw_requests(requests, 6, 3)
    for start in range(0, 6, 2):
        editor.edit(stream[start : start + 2])
    editor.stream = stream
    return editor


def value(rows, gate, setting, column):
    return rows[(rows["gate"] == gate) & (rows["value"] == setting)][column].item()


def test_every_question_is_asked(compared):
    kinds = compared.groupby("kind").size()
    assert kinds["length"] == len(FILLERS)
    assert kinds["unseen"] == 2 * len(RATES)
    assert kinds["sketch"] == len(SKETCHES)
    assert kinds["tradeoff"] == 1 + 2 * (len(FRACTIONS) + len(RATES)) + 1 + len(SHARPNESS) + 2 + 2 * len(LAYERS)
    assert compared.drop(columns=["kind", "gate", "value"]).stack().dropna().between(0, 1).all()


def test_scores_are_the_editors_behind_each_gate(compared, editor):
    rows = compared[compared["kind"] == "tradeoff"]
    hooks = editor._method.hooks
    gates = {hook.layer: hook.gate for hook in hooks}
    own = editor.evaluate(editor.stream)
    assert rows["locality_same_subject"].nunique() > 1  # otherwise any gate would pass
    for name in SCORES:
        assert value(rows, "leverage", 0, name) == pytest.approx(getattr(own, name), abs=1e-5)
    edited = {layer: [] for layer in LAYERS}
    for request in editor.stream:
        encoded = encode_edit(editor.tokenizer, request)
        with rewrite_inputs(editor._method.parts, LAYERS) as keys:
            editor._method.parts.backbone(torch.tensor([encoded.ids]))
        for layer in LAYERS:
            edited[layer].append(gates[layer].leverage(keys[layer][0, encoded.subject_last]).item())
    try:
        for hook in hooks:
            hook.gate = replace(gates[hook.layer], threshold=0.3 * min(edited[hook.layer]))
        by_hand = editor.evaluate(editor.stream)
        for name in SCORES:
            found = value(rows, "leverage, edited fraction", 0.3, name)
            assert found == pytest.approx(getattr(by_hand, name), abs=1e-5)
        for hook in hooks:
            hook.gate = replace(gates[hook.layer], retrieval=KeyRetrieval(5, gates[hook.layer].retrieval._rows))
        by_hand = editor.evaluate(editor.stream)
        for name in SCORES:
            assert value(rows, "leverage, sharpness", 5, name) == pytest.approx(getattr(by_hand, name), abs=1e-5)
        for hook in hooks:
            hook.gate = NoGate()
        assert value(rows, "off", 0, SCORES[-1]) == pytest.approx(
            getattr(editor.evaluate(editor.stream), SCORES[-1]), abs=1e-5
        )
    finally:
        for hook in hooks:
            hook.gate = gates[hook.layer]


def test_the_rates_on_unseen_text_count_what_the_gates_swap_there(compared, editor, inputs):
    background, tokenizer = read_covariance(inputs[1]).background, editor.tokenizer
    hooks = editor._method.hooks
    gates = {hook.layer: hook.gate for hook in hooks}
    asked = {"rate": [], "rate_base": [], "rate_elsewhere": []}

    def decisions(ids):
        with rewrite_inputs(editor._method.parts, LAYERS) as keys, torch.no_grad():
            editor._method.parts.backbone(ids)
        return torch.stack(
            [hook.gate.leverage(keys[hook.layer][0]) >= hook.gate.threshold for hook in hooks], dim=1
        ).tolist()

    try:
        for hook in hooks:
            gate = gates[hook.layer]
            hook.gate = replace(gate, threshold=background_quantile(gate.leverage(background[hook.layer]), 0.1))
        for position, text in enumerate(TEXTS[60:], 60):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            swaps = decisions(ids)
            with editor.disabled():
                asked["rate_base"] += decisions(ids)
            asked["rate"] += swaps
            places = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            for swap, (first, last) in zip(swaps, places, strict=True):
                named = [place for start, end in EDITED.get(position, ()) for place in range(start, end)]
                if not set(named) & set(range(first, last)):
                    asked["rate_elsewhere"].append(swap)
    finally:
        for hook in hooks:
            hook.gate = gates[hook.layer]
    assert len(asked["rate_elsewhere"]) < len(asked["rate"]) == len(asked["rate_base"])
    rows, found, one_token = compared[compared["kind"] == "unseen"], [], 1 / len(LAYERS) / len(asked["rate"])
    for name, swaps in asked.items():
        found.append(sum(map(sum, swaps)) / len(swaps) / len(LAYERS))
        assert value(rows, "leverage", 0.1, name) == pytest.approx(found[-1], abs=one_token)
    assert min(abs(a - b) for a, b in zip(found, [*found[1:], found[0]], strict=True)) > 3 * one_token


def test_agreement_counts_the_tokens_that_a_sketch_decides_as_the_exact_form_does(compared, editor, inputs):
    known, tokenizer, rows = read_covariance(inputs[1]), editor.tokenizer, SKETCHES[0]
    found = {layer: [*known.background[layer]] for layer in LAYERS}
    edited = {layer: [] for layer in LAYERS}
    for request in editor.stream:
        for prompt in (request, *(replace(request, prompt=paraphrase) for paraphrase in request.paraphrases)):
            encoded = encode_edit(tokenizer, prompt)
            with rewrite_inputs(editor._method.parts, LAYERS) as keys, torch.no_grad():
                editor._method.parts.backbone(torch.tensor([encoded.ids]))
            for layer in LAYERS:
                found[layer] += keys[layer][0]
                if prompt is request:
                    edited[layer].append(keys[layer][0, encoded.subject_last])
    shares = []
    for hook in editor._method.hooks:
        solver = FactoredLeastSquares(known.matrices[hook.layer], VALUES["covariance_weight"])
        decided = []
        for size in (editor.model.config.n_inner, rows):
            sketch = prior_sketch(solver, editor.model.config.n_inner, size, 3)
            gate = hook.gate.grown(hook.gate.factors, sketch)

            def leverage(key, gate=gate):
                return gate.leverage(key[None].float()).item()

            ordinary = sorted(leverage(key) for key in known.background[hook.layer])
            quantile = background_quantile(torch.tensor(ordinary), OWN["false_positive_rate"])
            tau = max(OWN["edited_fraction"] * min(leverage(key) for key in edited[hook.layer]), quantile)
            decided.append([leverage(key) >= tau for key in found[hook.layer]])
        shares.append(sum(one == other for one, other in zip(*decided, strict=True)) / len(decided[0]))
    rows = compared[compared["kind"] == "sketch"]
    tokens = min(len(keys) for keys in found.values())
    assert value(rows, "leverage", SKETCHES[0], "agreement") == pytest.approx(sum(shares) / len(shares), abs=2 / tokens)
    assert sum(shares) / len(shares) < 0.99  # otherwise no sketch could be told from the exact form


@pytest.mark.parametrize("count", [0, 20])
def test_each_prompt_is_asked_behind_a_text_of_its_own(compared, editor, count):
    def gate_at(hook, key):
        return (hook.gate.leverage(key) >= hook.gate.threshold).item()

    subjects, others, starts = [], [], set()
    for index, request in enumerate(editor.stream):
        words = editor.tokenizer(" ".join(TEXTS[60 + index :]))["input_ids"][:count]
        start = editor.tokenizer.decode(words) + " " if count else ""
        starts.add(start)
        ids = editor.tokenizer(start + request.text)["input_ids"]
        end = start + request.text[: request.text.index(request.subject)] + request.subject
        place = len(editor.tokenizer(end)["input_ids"]) - 1
        with rewrite_inputs(editor._method.parts, LAYERS, stop=False) as keys, torch.no_grad():
            editor.model(torch.tensor([ids]))
        swaps = [[gate_at(hook, key[None]) for key in keys[hook.layer][0]] for hook in editor._method.hooks]
        subjects.append(all(swap[place] for swap in swaps))
        others += [sum(swap[:place]) / place for swap in swaps if place]
    assert len(starts) == (len(editor.stream) if count else 1)
    row = compared[(compared["kind"] == "length") & (compared["value"] == count)]
    assert row["subjects"].item() == pytest.approx(sum(subjects) / len(subjects))
    assert row["others"].item() == pytest.approx(sum(others) / max(1, len(others)), abs=1e-6)


def test_it_says_where_the_base_model_itself_recalls(inputs, requests, tokenizer):
    """Of six requests some have the base model's own first choice as their true answer, and one has none."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(inputs[0])

    def first_choice(text):
        with torch.no_grad():
            return model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1].argmax().item()

    known = []
    for request in requests:
        word = tokenizer.decode([first_choice(request.text)])
        known.append(replace(request, target_true=word.strip() if word.startswith(" ") else "Rome"))
    known[-1] = replace(known[-1], target_true=None)
    drawn = draw_requests(known, 6, 3)
    asked = [request for request in drawn if request.target_true is not None]
    rows = compare_gates(config("coachhook", alpha=1.4), known, *inputs, TEXTS, device="cpu")
    found = {}
    for count in (0, 5):
        right = []
        for request in asked:
            words = tokenizer(" ".join(TEXTS[60 + drawn.index(request) :]))["input_ids"][:count]
            text = (tokenizer.decode(words) + " " if count else "") + request.text
            right.append(True)
            for token in tokenizer(f" {request.target_true}")["input_ids"]:
                right[-1] &= first_choice(text) == token
                text += tokenizer.decode([token])
        found[count] = sum(right) / len(asked)
        row = rows[(rows["kind"] == "length") & (rows["value"] == count)]
        assert row["recalled"].item() == pytest.approx(found[count])
    assert 0 < found[0] <= 1
    assert found[0] != found[5]


def test_a_sketch_as_wide_as_the_keys_decides_as_the_exact_form(compared):
    rows = compared[compared["kind"] == "sketch"]
    width = build_model("gpt2").config.n_inner
    assert set(rows[rows["value"] >= width]["agreement"]) == {1.0}


def test_of_another_gate_its_own_scores_and_places_are_measured(inputs, requests):
    rows = compare_gates(config("coachhook", alpha=1.4), requests, *inputs, TEXTS, device="cpu")
    assert set(rows["gate"]) == {"paper"}
    assert set(rows["kind"]) == {"tradeoff", "length"}


def test_a_text_that_was_read_to_its_end_is_refused(inputs, requests):
    with pytest.raises(TextError, match=r"the covariance has read all of them \(\d+ tokens\)"):
        compare_gates(config("coachhook-leverage", **OWN), requests, *inputs, TEXTS[:60], device="cpu")
