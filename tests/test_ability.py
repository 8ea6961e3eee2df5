"""lm-eval on real task files, with data of their own: nothing is fetched."""

import copy
import random
import sys

import literal
import numpy as np
import pytest
import torch
from ability_tasks import CHOICE, QUESTIONS, TASKS
from conftest import TEXT, build_model

from coachhook import Editor
from coachhook.metrics.ability import AbilityError, check_tasks, general_ability

OPTIONS = {"target_steps": 3, "target_lr": 0.5, "context_templates": 1, "covariance_weight": 1.0}


@pytest.mark.parametrize("method", ["coachhook", "memit"])
def test_ability_before_and_after_does_not_depend_on_the_batch_size(method, tokenizer, covariances, requests, tasks):
    model = build_model("gpt2").double()
    base = general_ability(model, tokenizer, TASKS, include_path=tasks)
    options = OPTIONS | ({"alpha": 1.2} if method == "coachhook" else {})
    editor = Editor(model, tokenizer, method, covariances["gpt2"], **options)
    editor.edit(requests)
    one, four = (general_ability(editor, tokenizer, TASKS, include_path=tasks, batch_size=size) for size in (1, 4))
    assert set(one) == set(TASKS)
    assert {name: set(row) for name, row in one.items()} == {
        "cities": {"acc", "acc_norm"},
        "texts": {"bits_per_byte"},
        "write": {"exact_match"},
    }
    for task in TASKS:
        assert four[task] == pytest.approx(one[task], rel=1e-6)
    assert one["texts"]["bits_per_byte"] != pytest.approx(base["texts"]["bits_per_byte"], rel=1e-4)
    assert one["cities"]["acc"] == literal_accuracy(editor.model, tokenizer)
    with editor.disabled():
        assert general_ability(editor.model, tokenizer, TASKS, include_path=tasks) == base
    editor.close()


def literal_accuracy(model, tokenizer):
    """Share of questions whose right choice has the highest log-likelihood, one choice at a time."""
    right = 0
    for question in QUESTIONS:
        sums = [
            literal.mean_log_likelihood(model, tokenizer, question["question"], choice)
            * len(literal.token_ids(tokenizer, " " + choice))
            for choice in question["choices"]
        ]
        right += sums.index(max(sums)) == question["answer"]
    return right / len(QUESTIONS)


def test_lm_evals_own_model_depends_on_the_batch_size_behind_a_gate(tokenizer, covariances, requests):
    """What the mask is for; with it the log-likelihoods are those of one text at a time."""
    from lm_eval.models.huggingface import HFLM

    from coachhook.metrics.harness import MaskedModel

    editor = Editor(build_model("gpt2").double(), tokenizer, "coachhook", covariances["gpt2"], **OPTIONS, alpha=1.2)
    editor.edit(requests)
    pairs = [(f"{text[:12]}", text[12:]) for text in TEXT] + [("Paris", " is"), ("Paris", " was")]
    encoded = [(pair, *map(tokenizer.encode, pair)) for pair in pairs]
    found = {}
    for kind in (HFLM, MaskedModel):
        for size in (1, 4):
            harness = kind(editor.model, tokenizer=copy.deepcopy(tokenizer), batch_size=size)
            answers = harness._loglikelihood_tokens(encoded, disable_tqdm=True)
            found[kind, size] = [likelihood for likelihood, _ in answers]
    assert found[HFLM, 4] != pytest.approx(found[HFLM, 1], rel=1e-4)
    assert found[MaskedModel, 4] == pytest.approx(found[MaskedModel, 1], rel=1e-9)
    assert found[MaskedModel, 1] == pytest.approx(found[HFLM, 1], rel=1e-9)
    editor.close()


def test_a_limit_asks_the_first_documents_only_and_nothing_else_is_touched(tokenizer, tasks):
    model, bare = build_model("gpt2"), copy.deepcopy(tokenizer)
    bare.pad_token = None
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = general_ability(model, bare, ["cities"], include_path=tasks, limit=1)
    assert found["cities"]["acc"] in (0, 1)
    assert bare.pad_token is None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_tasks_that_cannot_be_run_are_refused_in_one_line(tokenizer, tasks, tmp_path, monkeypatch):
    with pytest.raises(AbilityError, match=r"tasks: 'towns' is unknown; .* has: cities, texts, write"):
        check_tasks(["cities", "towns"], tasks)
    with pytest.raises(AbilityError, match=r"include_path: .*gone is no folder"):
        check_tasks(["cities"], tmp_path / "gone")
    (tmp_path / "lost.yaml").write_text(CHOICE.format(folder=tmp_path).replace("task: cities", "task: lost"))
    with pytest.raises(AbilityError, match=r"tasks: lost cannot be loaded \(.*\); mend its file") as caught:
        general_ability(build_model("gpt2"), tokenizer, ["lost"], include_path=tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(AbilityError, match=r"needs lm-eval .*; install it: pip install 'coachhook\[eval\]'"):
        check_tasks(["cities"], tasks)
