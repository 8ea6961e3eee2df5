import json
import shutil

import pytest
from ability_tasks import TASKS, write_tasks
from conftest import build_model

from coachhook import Editor
from coachhook.covariance import write_covariance
from coachhook.errors import CoachHookError
from coachhook.metrics.ability import AbilityError, general_ability
from coachhook.metrics.fluency import generate_texts, ngram_entropy
from coachhook.side_effects import STATES
from coachhook.stream import StreamConfig, draw_requests, run_stream

OPTIONS = {"covariance_weight": 1.0, "target_steps": 3, "target_lr": 0.5, "context_templates": 1}
CONFIG = {"method": "memit", "hyperparameters": OPTIONS, "edits": 5, "batch_size": 2, "evaluate_every": 4, "seed": 3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer, covariances, requests):
    directory = tmp_path_factory.mktemp("inputs")
    build_model("gpt2").save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    write_covariance(covariances["gpt2"], directory / "c.safetensors")
    return requests, directory / "model", directory / "c.safetensors"


def run(inputs, directory, **changes):
    run_stream(StreamConfig(**CONFIG | changes), *inputs, out_dir=directory / "out", checkpoint_dir=directory / "steps")


def last_rows(directory, step=3):
    rows = [json.loads(line) for line in (directory / "out" / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] == step], [row for row in rows if row["step"] != step]


def measured(directory, name):
    return json.loads((directory / "out" / f"{name}.json").read_text())


@pytest.mark.parametrize(("round_", "count"), [("consecutive", 3), ("single", 1)])
def test_fluency_is_that_of_the_base_and_of_the_final_model(inputs, tokenizer, tmp_path, round_, count):
    run(inputs, tmp_path, fluency=3, round=round_)
    found = measured(tmp_path, "fluency")
    assert list(found) == list(STATES)
    stream = draw_requests(inputs[0], 5, CONFIG["seed"])
    possible = stream if round_ == "consecutive" else stream[4:]  # what the final model was edited with
    editor = Editor(build_model("gpt2"), tokenizer, "memit", inputs[2], seed=CONFIG["seed"], **OPTIONS)
    for state in STATES:
        texts = found[state]["texts"]
        assert found[state]["prompts"] == len(texts) == count
        prompts = [next(request.text for request in possible if text.startswith(request.text)) for text in texts]
        if state == "edited":
            for batch in (stream[:2], stream[2:4], stream[4:]):
                editor.rollback(0 if round_ == "single" else editor.step)
                editor.edit(batch)
        assert generate_texts(editor.model, tokenizer, prompts, seed=CONFIG["seed"]) == texts
        assert found[state]["ngram_entropy"] == ngram_entropy(texts)
    assert found["base"]["texts"] != found["edited"]["texts"]
    last, earlier = last_rows(tmp_path)
    numbers = {"fluency_base": found["base"]["ngram_entropy"], "fluency": found["edited"]["ngram_entropy"]}
    assert all(row.items() >= numbers.items() for row in last)
    assert not any("fluency" in row for row in earlier)
    run(inputs, tmp_path / "without", round=round_)
    without, same = last_rows(tmp_path / "without")
    assert earlier == same
    assert [row | numbers for row in without] == last


def test_the_base_model_is_measured_once_for_streams_of_the_same_requests(inputs, tmp_path, monkeypatch):
    calls = []

    def counted(model, tokenizer, prompts, **options):
        calls.append(prompts)
        return generate_texts(model, tokenizer, prompts, **options, length=30)

    monkeypatch.setattr("coachhook.side_effects.generate_texts", counted)
    methods = {"memit": OPTIONS, "ft-m": {"layers": [0], "steps": 1}}
    for place, (method, options) in enumerate(methods.items()):
        config = StreamConfig(**CONFIG | {"method": method, "hyperparameters": options, "fluency": 2})
        folders = {name: tmp_path / f"{name}{place}" for name in ("out_dir", "checkpoint_dir")}
        covariance = inputs[2] if method == "memit" else None
        run_stream(config, *inputs[:2], covariance, **folders, base_answers_dir=tmp_path / "base")
    assert len(calls) == 3  # the base model once, both edited models
    base = [json.loads((tmp_path / f"out_dir{place}" / "fluency.json").read_text())["base"] for place in (0, 1)]
    assert base[0] == base[1]


@pytest.mark.usefixtures("tasks")
def test_ability_is_measured_once_in_each_state_even_when_killed(inputs, tokenizer, tmp_path, monkeypatch):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_tasks(tasks)
    ability = {"tasks": TASKS, "include_path": str(tasks), "limit": 3, "batch_size": 4}
    calls = []

    def counted(model, *args, **kwargs):
        calls.append(model.step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return general_ability(model, *args, **kwargs)

    monkeypatch.setattr("coachhook.side_effects.general_ability", counted)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path, ability=ability)
    run(inputs, tmp_path, ability=ability)
    shutil.rmtree(tmp_path / "out")
    run(inputs, tmp_path, ability=ability)
    assert calls == [0, 3, 3]
    options = {"include_path": tasks, "limit": 3, "seed": CONFIG["seed"]}
    base = general_ability(build_model("gpt2"), tokenizer, TASKS, **options)
    found = measured(tmp_path, "ability")
    assert found["base"] == {task: pytest.approx(row, rel=1e-5) for task, row in base.items()}
    assert set(found["edited"]) == set(TASKS)
    row = last_rows(tmp_path)[0][0]
    assert row["ability_cities_acc"] == found["edited"]["cities"]["acc"]
    assert row["ability_texts_bits_per_byte_base"] == found["base"]["texts"]["bits_per_byte"]
    assert found["edited"]["texts"] != found["base"]["texts"]
    (tasks / "texts.json").write_text(json.dumps({"text": "Another text."}))
    calls.append(None)
    run(inputs, tmp_path, ability=ability)
    assert calls == [0, 3, 3, None, 0, 3]  # the data of a task changed


def test_an_unknown_task_is_refused_before_any_work(inputs, tasks, tmp_path):
    with pytest.raises(AbilityError, match="tasks: 'towns' is unknown"):
        run(inputs, tmp_path, ability={"tasks": ["towns"], "include_path": str(tasks)})
    assert not any(tmp_path.iterdir())


def test_a_stream_that_asks_for_neither_writes_neither(inputs, tmp_path):
    run(inputs, tmp_path)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"metrics.jsonl", "records.parquet", "cost.jsonl"}


def test_settings_out_of_range_are_refused():
    for changes in ({"fluency": 0}, {"ability": {"tasks": []}}, {"ability": {"tasks": ["a"], "limit": 0}}):
        with pytest.raises(ValueError, match="validation error"):
            StreamConfig(**CONFIG | changes)


def test_a_prompt_that_fills_the_context_is_refused_before_the_first_edit(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("coachhook.side_effects.generate_texts", lambda *a, **k: generate_texts(*a, **k, length=3))
    with pytest.raises(CoachHookError, match=r"generation prompt 1: .* tokens leave nothing to write up to 3"):
        run(inputs, tmp_path, fluency=2)
    assert not list((tmp_path / "steps").glob("*.safetensors"))
