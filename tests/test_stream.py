import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import LAYERS, build_model
from families import STARCODER, starcoder

from coachhook import Editor, EditRequest, Probe
from coachhook.covariance import write_covariance
from coachhook.editors.mend import Mend, MendConfig, MendTraining
from coachhook.errors import CoachHookError
from coachhook.figure_data import collect
from coachhook.metrics import PROTOCOLS
from coachhook.metrics.questions import KINDS
from coachhook.stream import StreamConfig, draw_requests, run_stream
from coachhook.tables import over_seeds, per_seed
from coachhook.whole_files import read_checked

# The server imports once what this module and a stream import; each stream is then a process of its own, to be killed.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["pytest", "pyarrow.parquet"]
    + [f"coachhook.{module}" for module in ("stream", "figure_data", "tables", "covariance")]
    + [f"coachhook.editors.{module}" for module in ("coachhook", "leverage", "fine_tuning", "mend")]
    + [f"transformers.models.{family}.modeling_{family}" for family in ("gpt2", "gptj", "llama", "gpt_bigcode")]
)

RESULTS = ("metrics.jsonl", "records.parquet", "zscores.parquet")
CONFIG = {
    "method": "coachhook",
    "hyperparameters": {
        "covariance_weight": 2.0,
        "target_steps": 2,
        "target_lr": 0.05,
        "context_templates": 2,
        "alpha": 1.4,
    },
    "edits": 6,
    "batch_size": 2,
    "evaluate_every": 2,
    "protocols": ("easyedit", "generate"),
    "z_scores": True,
    "seed": 3,
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("model")
    build_model("gpt2").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def covariance(tmp_path_factory, covariances):
    path = tmp_path_factory.mktemp("covariance") / "c.safetensors"
    write_covariance(covariances["gpt2"], path)
    return path


@pytest.fixture(scope="module")
def inputs(model_dir, covariance, requests):
    return requests, model_dir, covariance


def kill_at(moment, place, directory):
    """Make this process kill itself at a moment: "before" or "after" it puts a file into place, or "during" its
    n-th evaluation.
    """
    from coachhook import base_answers, evaluation

    replace, calls = os.replace, []

    def replacing(source, target):
        hit = str(target) == str(directory / str(place))
        if hit and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if hit and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(predict):
        def predicting(*args):
            calls.append(args)
            if moment == "during" and len(calls) == place:
                os.kill(os.getpid(), signal.SIGKILL)
            return predict(*args)

        return predicting

    os.replace = replacing
    evaluation.predict, base_answers.predict_base = counted(evaluation.predict), counted(base_answers.predict_base)


def folders(directory):
    names = {"out_dir": "out", "checkpoint_dir": "steps", "base_answers_dir": "base"}
    return {argument: directory / name for argument, name in names.items()}


def stream_process(config, inputs, directory, death=None):
    if death is not None:
        kill_at(*death, directory)
    run_stream(config, *inputs, **folders(directory))


def start(inputs, directory, death=None, **changes):
    config = StreamConfig(**{**CONFIG, **changes})
    process = processes.Process(target=stream_process, args=(config, inputs, directory, death))
    process.start()
    return process


def finish(inputs, directory, **changes):
    process = start(inputs, directory, **changes)
    process.join()
    assert process.exitcode == 0
    return results(directory)


def results(directory):
    return {name: (directory / "out" / name).read_bytes() for name in RESULTS if (directory / "out" / name).exists()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, inputs):
    """Directory and results of a stream that nothing disturbed."""
    directory = tmp_path_factory.mktemp("unbroken")
    return directory, finish(inputs, directory)


@pytest.mark.parametrize("round_", ["consecutive", "single"])
def test_a_stream_killed_again_and_again_ends_with_the_same_bytes(inputs, unbroken, tmp_path, round_):
    deaths = [
        ("before", "steps/stream.json"),
        ("after", "steps/stream.json"),
        ("during", 1),  # the base model's answers
        ("after", "steps/000001.cost.json"),
        ("before", "steps/000001.safetensors"),
        ("after", "steps/000001.safetensors"),
        ("during", 1),  # the first evaluation: the base model's answers are there
        ("before", "steps/000001.records.parquet"),
        ("after", "steps/000001.records.parquet"),
        ("after", "steps/000002.safetensors"),
        ("before", "steps/000002.metrics.jsonl"),
        ("after", "steps/000003.metrics.jsonl"),
        ("after", "out/records.parquet"),
        ("after", "out/metrics.jsonl"),
    ]
    for death in deaths:
        process = start(inputs, tmp_path / "killed", death, round=round_)
        process.join()
        assert process.exitcode == -signal.SIGKILL, death
    whole, expected = unbroken
    if round_ == "single":
        whole, expected = tmp_path / "whole", finish(inputs, tmp_path / "whole", round=round_)
        assert expected["metrics.jsonl"] != unbroken[1]["metrics.jsonl"]
    assert finish(inputs, tmp_path / "killed", round=round_) == expected
    assert set(expected) == set(RESULTS)
    for step in (1, 2, 3):
        name = f"steps/{step:06d}.safetensors"
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes()


def test_a_single_round_evaluates_each_batch_alone_on_the_base_model(inputs, tokenizer, requests, tmp_path):
    run_stream(StreamConfig(**{**CONFIG, "round": "single"}), *inputs, **folders(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["edits"], row["protocol"]) for row in rows] == [
        (3, 6, "easyedit"),
        (3, 6, "generate"),
    ]
    stream = draw_requests(requests, 6, CONFIG["seed"])
    alone = {protocol: [] for protocol in CONFIG["protocols"]}
    for batch in (stream[:2], stream[2:4], stream[4:]):
        options = {"seed": CONFIG["seed"], **CONFIG["hyperparameters"]}
        editor = Editor(build_model("gpt2"), tokenizer, "coachhook", inputs[2], **options)
        editor.edit(batch)
        for protocol, found in alone.items():
            found.append(editor.evaluate(batch, protocol))
    for row in rows:
        for name in ("reliability", "generality", "locality", "locality_same_subject"):
            values = [getattr(metrics, name) for metrics in alone[row["protocol"]]]
            assert row[name] == pytest.approx(sum(values) / 3, abs=1e-6)
    records = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert (records.step == records.batch).all()
    assert (records.batch == records.request // 2 + 1).all()
    assert set(records.protocol) == set(CONFIG["protocols"])
    z_scores = pd.read_parquet(tmp_path / "out" / "zscores.parquet")
    assert set(z_scores.request) == {4, 5}  # the model holds the last batch alone


@pytest.mark.parametrize(("round_", "edits"), [("consecutive", [2, 4, 6]), ("single", [2, 2, 2])])
def test_costs_are_measured_once_even_when_killed(inputs, tmp_path, round_, edits):
    process = start(inputs, tmp_path, ("after", "steps/000002.safetensors"), round=round_)
    process.join()
    before = [(tmp_path / "steps" / f"00000{step}.cost.json").read_text() for step in (1, 2)]
    finish(inputs, tmp_path, round=round_)
    lines = (tmp_path / "out" / "cost.jsonl").read_text().splitlines(keepends=True)
    assert lines[:2] == before
    *steps, forward = map(json.loads, lines)
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [row["edits"] for row in steps] == edits
    assert all(row["seconds"] > 0 for row in steps)
    assert {row["state_bytes"] for row in steps} == {len(LAYERS) * 32 * 48 * 4}
    for row in steps:
        assert row["journal_bytes"] == (tmp_path / "steps" / f"00000{row['step']}.safetensors").stat().st_size
    slowdown = forward["forward_ms_edited"] / forward["forward_ms_base"]
    assert forward["forward_slowdown"] == pytest.approx(slowdown)
    assert forward["tokens"] > 6
    assert forward["model_bytes"] == sum(parameter.nbytes for parameter in build_model("gpt2").parameters())


@pytest.mark.parametrize("method", ["memit", "ft-m"])
def test_other_methods_resume_with_the_same_bytes_too(inputs, tmp_path, method):
    options = {} if method == "memit" else {"layers": LAYERS, "steps": 3}
    options = {"target_steps": 2, "context_templates": 1} if method == "memit" else options
    changes = {"method": method, "hyperparameters": options, "protocols": ("easyedit",), "z_scores": False}
    process = start(inputs, tmp_path / "a", ("after", "steps/000002.safetensors"), **changes)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert finish(inputs, tmp_path / "a", **changes) == finish(inputs, tmp_path / "b", **changes)


@pytest.mark.parametrize("step", [1, 3])
def test_a_stream_killed_from_outside_when_a_step_appears(inputs, unbroken, tmp_path, step):
    process = start(inputs, tmp_path)
    while not (tmp_path / "steps" / f"{step:06d}.safetensors").exists():
        assert process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join()
    assert finish(inputs, tmp_path) == unbroken[1]


def test_a_stream_killed_at_random_times_ends_with_the_same_bytes(inputs, unbroken, tmp_path):
    draw, killed = random.Random(5), 0
    written = len(list((unbroken[0] / "steps").iterdir()))
    for files in sorted(draw.sample(range(written), 3)):
        process = start(inputs, tmp_path)
        while process.is_alive() and len(list(tmp_path.glob("steps/*"))) <= files:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 1
    assert finish(inputs, tmp_path) == unbroken[1]


def test_what_a_kill_left_half_written_is_removed(inputs, unbroken, tmp_path):
    shutil.copytree(unbroken[0] / "steps", tmp_path / "steps")
    for name in (".000002.records.parquet.77.tmp", ".000003.safetensors.77.tmp", ".thesis.tmp"):
        (tmp_path / "steps" / name).write_text("half")
    assert finish(inputs, tmp_path) == unbroken[1]
    assert [path.name for path in (tmp_path / "steps").glob(".*")] == [".thesis.tmp"]


def _flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [_flip, lambda content: content[: len(content) // 2], lambda _: b""])
def test_what_is_damaged_in_a_checkpoint_is_made_again(inputs, unbroken, tmp_path, caplog, damage):
    shutil.copytree(unbroken[0] / "steps", tmp_path / "steps")
    names = ["000001.safetensors", "000002.cost.json", "000002.metrics.jsonl", "000003.records.parquet"]
    for name in names:
        path = tmp_path / "steps" / name
        path.write_bytes(damage(path.read_bytes()))
    run_stream(StreamConfig(**CONFIG), *inputs, **folders(tmp_path))  # in this process, whose log is looked at
    assert results(tmp_path) == unbroken[1]
    for name in names:
        assert f"{name}: damaged" in caplog.text
        assert read_checked(tmp_path / "steps" / name) is not None


def test_a_finished_stream_neither_edits_nor_evaluates_again(inputs, tmp_path, monkeypatch):
    config = StreamConfig(**{**CONFIG, "edits": 4, "protocols": ("easyedit",)})
    run_stream(config, *inputs, **folders(tmp_path))
    given = results(tmp_path)
    shutil.rmtree(tmp_path / "out")

    def again(*args):
        raise AssertionError("done again")

    monkeypatch.setattr("coachhook.editor.Editor.edit", again)
    monkeypatch.setattr("coachhook.evaluation.score", again)
    run_stream(config, *inputs, **folders(tmp_path))
    assert results(tmp_path) == given


@pytest.mark.parametrize(
    "changes",
    [
        {"hyperparameters": {**CONFIG["hyperparameters"], "covariance_weight": 3.0}},
        {"seed": 4},
        {"batch_size": 3, "evaluate_every": 3},
        {"method": "coachhook-nohook"},
        {"round": "single"},
    ],
    ids=["hyperparameter", "seed", "batch", "method", "round"],
)
def test_another_streams_checkpoint_is_not_used(inputs, unbroken, tmp_path, changes):
    shutil.copytree(unbroken[0] / "steps", tmp_path / "used" / "steps")
    fresh = finish(inputs, tmp_path / "fresh", **changes)
    assert finish(inputs, tmp_path / "used", **changes) == fresh
    assert fresh["metrics.jsonl"] != unbroken[1]["metrics.jsonl"]


def test_clearing_another_streams_checkpoint_spares_other_files(inputs, tmp_path):
    """A wrong path on the command line must not cost the user's files."""
    steps = tmp_path / "steps"
    steps.mkdir()
    ours = ["000009.safetensors", "000009.metrics.jsonl", ".000009.records.parquet.77.tmp"]
    for name in (*ours, "thesis.txt", "model.safetensors"):
        (steps / name).write_text("precious")
    config = StreamConfig(**{**CONFIG, "protocols": ("easyedit",), "z_scores": False, "edits": 2})
    run_stream(config, *inputs, out_dir=tmp_path / "out", checkpoint_dir=steps)
    assert (steps / "thesis.txt").read_text() == (steps / "model.safetensors").read_text() == "precious"
    assert not any((steps / name).exists() for name in ours)


def test_metrics_are_the_means_of_the_records(unbroken):
    rows = [json.loads(line) for line in unbroken[1]["metrics.jsonl"].decode().splitlines()]
    records = pd.read_parquet(unbroken[0] / "out" / "records.parquet")
    assert [(row["step"], row["edits"], row["protocol"]) for row in rows] == [
        (1, 2, "easyedit"),
        (2, 4, "easyedit"),
        (3, 6, "easyedit"),
        (3, 6, "generate"),  # the first protocol on the way, every protocol at the end
    ]
    kinds = {
        "edit": "reliability",
        "paraphrase": "generality",
        "other_subject": "locality",
        "same_subject": "locality_same_subject",
    }
    for row in rows:
        of_row = records[(records.step == row["step"]) & (records.protocol == row["protocol"])]
        assert set(of_row.request) == set(range(row["edits"]))
        assert (of_row.batch == of_row.request // 2 + 1).all()
        for kind, name in kinds.items():
            scores = of_row[of_row.kind == kind]
            now = scores[scores.batch == row["step"]]
            assert row[name] == pytest.approx(scores.groupby("request").score.mean().mean(), abs=1e-6)
            assert row[f"{name}_current_batch"] == pytest.approx(now.groupby("request").score.mean().mean(), abs=1e-6)
        mean = (row["reliability"] + row["generality"] + row["locality"]) / 3
        assert row["mean"] == pytest.approx(mean)
    alphas = [row["alpha"] for row in rows]
    assert all(set(alpha) == {str(layer) for layer in LAYERS} for alpha in alphas)
    for earlier, later in itertools.pairwise(alphas):
        assert all(later[layer] <= earlier[layer] for layer in later)


def test_records_have_the_agreed_columns(unbroken):
    records = pd.read_parquet(unbroken[0] / "out" / "records.parquet")
    assert {
        name: str(kind) for name, kind in records.dtypes.items() if name not in ("case_id", "kind", "protocol")
    } == {
        "step": "int32",
        "edits": "int32",
        "batch": "int32",
        "request": "int32",
        "prompt": "int16",
        "score": "float32",
        "superseded": "bool",
    }
    assert set(records.kind) == {"edit", "paraphrase", "other_subject", "same_subject"}
    assert records.score.between(0, 1).all()


ROME = ("efficacy", "paraphrase", "neighbourhood")
MAGNITUDES = tuple(f"{name}_magnitude" for name in ROME)


@pytest.fixture(scope="module")
def rivals(requests):
    """The requests with true answers but for the first, and what follows from the second and the third edit."""
    true = [None, "Paris", "London for many years", "Rome", "city of Rome and the river", "Oslo"]
    follows = (Probe("The river of that city is the", "engine of many years", "portability"),)
    changed = [replace(request, target_true=answer) for request, answer in zip(requests, true, strict=True)]
    return [replace(request, portability=follows) if i in (1, 2) else request for i, request in enumerate(changed)]


@pytest.mark.parametrize("round_", ["consecutive", "single"])
def test_romes_numbers_stand_beside_those_that_every_protocol_has(inputs, rivals, tokenizer, tmp_path, round_):
    changes = {"protocols": ("easyedit", "rome"), "round": round_, "z_scores": False}
    config = StreamConfig(**{**CONFIG, **changes})
    run_stream(config, rivals, *inputs[1:], **folders(tmp_path))
    rows = {row["protocol"]: row for row in metrics_rows(tmp_path)}  # the last of each
    rome, plain = rows["rome"], rows["easyedit"]
    assert rome["not_scored"] == 1
    assert [rome[name] for name in ROME] == [rome[name] for name in ("reliability", "generality", "locality")]
    assert rome["locality_same_subject"] is None
    assert "portability" not in rome
    assert 0 <= plain["portability"] <= 1
    assert not set(plain) & {*ROME, *MAGNITUDES, "score", "not_scored"}
    records = pd.read_parquet(tmp_path / "out" / "records.parquet")
    of_rome = records[(records.protocol == "rome") & (records.step == rome["step"])]
    of_rome = records[records.protocol == "rome"] if round_ == "single" else of_rome
    assert set(of_rome[of_rome.score.isna()].kind) == {*KINDS}  # those of the request without a true answer too
    for name, kind in zip(ROME, ("edit", "paraphrase", "other_subject"), strict=True):
        of_requests = of_rome[of_rome.kind == kind].groupby("request")[list(PROTOCOLS["rome"].columns)].mean()
        assert of_requests.score.isna().sum() == 1
        means = of_requests.mean()
        found = rome[name], rome[f"{name}_magnitude"], rome[f"base_{name}"]
        assert found == pytest.approx((means.score, means.magnitude, means.base_score), abs=1e-6)
    assert (of_rome.score.dropna() == (of_rome.magnitude.dropna() > 0)).all()
    assert records[records.protocol == "easyedit"].magnitude.isna().all()
    assert (records[records.protocol == "easyedit"].kind == "portability").any()
    if round_ == "consecutive":
        editor = Editor(build_model("gpt2"), tokenizer, "coachhook", inputs[2], seed=3, **CONFIG["hyperparameters"])
        stream = draw_requests(rivals, 6, CONFIG["seed"])
        for start in (0, 2, 4):
            editor.edit(stream[start : start + 2])
        assert {k: rome[k] for k in editor.evaluate(stream, "rome").row()} == pytest.approx(
            editor.evaluate(stream, "rome").row(), abs=1e-6
        )


def test_a_stream_scored_as_rome_does_is_resumed_and_put_in_tables(inputs, rivals, tmp_path):
    changes = {"protocols": ("rome", "easyedit"), "z_scores": False}
    directory = tmp_path / "model~m" / "dataset~d" / "method~coachhook" / "setting~default" / "seed~3"
    process = start((rivals, *inputs[1:]), directory, ("after", "steps/000002.metrics.jsonl"), **changes)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert finish((rivals, *inputs[1:]), directory, **changes) == finish(
        (rivals, *inputs[1:]), tmp_path / "b", **changes
    )
    frame = collect([directory / "out" / "metrics.jsonl"])
    rows = {protocol: over_seeds(per_seed(frame, protocol)) for protocol in ("rome", "easyedit")}
    assert {"score", "score_not_superseded"} <= set(rows["rome"])
    assert {"portability", "portability_not_superseded"} <= set(rows["easyedit"])
    last = metrics_rows(directory)[-2]
    three = [last[name] for name in ROME]
    harmonic = 3 / sum(1 / value for value in three) if all(three) else 0
    assert rows["rome"].score[0] == pytest.approx(harmonic) == pytest.approx(last["score"])
    assert rows["rome"].score_not_superseded[0] == pytest.approx(harmonic, abs=1e-6)  # nothing is superseded


def metrics_rows(directory):
    return [json.loads(line) for line in (directory / "out" / "metrics.jsonl").read_text().splitlines()]


def test_z_scores_name_the_subjects_token(unbroken, tokenizer, requests):
    frame = pd.read_parquet(unbroken[0] / "out" / "zscores.parquet")
    assert list(frame.columns) == ["layer", "kind", "request", "role", "z"]
    stream = draw_requests(requests, 6, CONFIG["seed"])
    for (layer, kind, position), group in frame.groupby(["layer", "kind", "request"]):
        request = stream[position]
        text = request.text if kind == "edit" else request.paraphrase_texts[0]
        assert layer in LAYERS
        assert len(group) == len(tokenizer(text)["input_ids"])
        assert (group.role == "subject").sum() == 1
        bound = (len(group) - 1) / math.sqrt(len(group))
        assert group.z.max() <= bound + 1e-5
        assert abs(group.z.mean()) < 1e-4


def test_superseded_requests_are_marked_in_the_records(model_dir, covariance, tmp_path):
    pool = [
        EditRequest("Ada Lovelace", "{} was born in", "Paris", case_id="old"),
        EditRequest("Ada Lovelace", "{} was born in", "Oslo", case_id="new"),
        EditRequest("Italy", "The capital of {} is", "Oslo", case_id="free"),
    ]
    config = StreamConfig(**{**CONFIG, "edits": 3, "evaluate_every": 3, "z_scores": False})
    run_stream(config, pool, model_dir, covariance, **folders(tmp_path))
    records = pd.read_parquet(tmp_path / "out" / "records.parquet")
    order = list(dict.fromkeys(records.case_id))
    first = min(("old", "new"), key=order.index)  # whichever was drawn first is contradicted by the other
    assert set(records[records.superseded].case_id) == {first}
    assert records[records.case_id == first].superseded.all()


def test_a_request_without_a_case_id_has_none_in_the_records(model_dir, covariance, tmp_path):
    pool = [
        EditRequest("Italy", "The capital of {} is", "Oslo"),
        EditRequest("Ada", "{} was born in", "Oslo", case_id=7),
    ]
    run_stream(
        StreamConfig(**{**CONFIG, "edits": 2, "z_scores": False}), pool, model_dir, covariance, **folders(tmp_path)
    )
    assert set(pd.read_parquet(tmp_path / "out" / "records.parquet").case_id.dropna()) == {"7"}


def test_the_stream_is_drawn_from_the_seed(requests):
    drawn = [[request.case_id for request in draw_requests(requests, 4, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 4
    with pytest.raises(CoachHookError, match="wants 7 edits, the data set has 6; lower edits"):
        draw_requests(requests, 7, 0)


@pytest.mark.parametrize(
    ("edits", "batch", "every", "steps"),
    [(6, 2, 2, [1, 2, 3]), (7, 2, 4, [2, 4]), (9, 2, 4, [2, 4, 5]), (5, 10, 1, [1]), (6, 2, 100, [3])],
)
def test_the_last_step_is_always_evaluated(edits, batch, every, steps):
    config = StreamConfig(method="memit", edits=edits, batch_size=batch, evaluate_every=every)
    assert config.evaluation_steps() == steps


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocols": ("roem",)}, "protocol 'roem' is unknown; use one of easyedit, generate, rome"),
        ({"method": "romeo"}, "method: 'romeo' is unknown"),
        ({"hyperparameters": {"lamda": 1}}, "lamda: "),
        ({"edits": 60}, "wants 60 edits"),
    ],
)
def test_bad_input_is_refused_before_any_work(inputs, tmp_path, changes, words):
    config = StreamConfig(**{**CONFIG, **changes})
    with pytest.raises(CoachHookError, match=words) as caught:
        run_stream(config, *inputs, **folders(tmp_path))
    assert "\n" not in str(caught.value)
    assert not any(Path(tmp_path).iterdir())


def test_the_base_models_answers_are_computed_once_for_streams_of_the_same_requests(inputs, tmp_path, monkeypatch):
    whole = {**CONFIG, "z_scores": False}
    run_stream(StreamConfig(**whole), *inputs, **folders(tmp_path / "alone"))
    kept = {"base_answers_dir": tmp_path / "base"}
    options = {name: CONFIG["hyperparameters"][name] for name in ("target_steps", "context_templates")}
    other = StreamConfig(**{**whole, "method": "memit", "hyperparameters": options, "round": "single"})
    run_stream(other, *inputs, **folders(tmp_path / "memit") | kept)
    assert len(list((tmp_path / "base").glob("*.json"))) == len(CONFIG["protocols"])

    def again(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr("coachhook.base_answers.predict_base", again)
    run_stream(StreamConfig(**whole), *inputs, **folders(tmp_path / "after") | kept)
    assert results(tmp_path / "after") == results(tmp_path / "alone")
    with pytest.raises(AssertionError, match="computed again"):
        run_stream(StreamConfig(**whole | {"seed": 4}), *inputs, **folders(tmp_path / "seed") | kept)


def test_a_trained_editor_is_part_of_the_stream(inputs, tokenizer, tmp_path):
    requests, model_dir, _ = inputs
    options, found = {"layers": LAYERS}, []
    settings = MendConfig(**options), MendTraining(steps=2, rank=4, validate_every=1), requests
    config = StreamConfig(**{**CONFIG, "method": "mend", "hyperparameters": options, "z_scores": False})
    for seed in (0, 1):
        out = tmp_path / f"{seed}.safetensors"
        Mend.train(build_model("gpt2"), tokenizer, *settings, out=out, checkpoint=tmp_path / "training", seed=seed)
        run_stream(config, requests, model_dir, None, trained_editor=out, **folders(tmp_path))
        found.append((tmp_path / "steps" / "000001.safetensors").read_bytes())
    assert found[0] != found[1]  # the first editor's checkpoint was not used


def test_a_trained_editor_is_for_methods_that_need_one(inputs, tmp_path):
    with pytest.raises(CoachHookError, match="trained_editor: method coachhook takes none; leave it out"):
        run_stream(StreamConfig(**CONFIG), *inputs, trained_editor="mend.safetensors", **folders(tmp_path))
    config = StreamConfig(**{**CONFIG, "method": "mend", "hyperparameters": {"layers": LAYERS}})
    with pytest.raises(CoachHookError, match="trained_editor: method mend needs one"):
        run_stream(config, *inputs, **folders(tmp_path))
    assert not any(tmp_path.iterdir())


def test_a_stream_edits_a_declared_family(tokenizer, requests, tmp_path):
    starcoder().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = {"method": "ft-m", "hyperparameters": {"layers": LAYERS, "steps": 1}, "edits": 2, "batch_size": 2}
    config = StreamConfig(**settings, evaluate_every=2)
    with pytest.raises(CoachHookError, match="'starcoder2' is unknown"):
        run_stream(config, requests, tmp_path / "model", None, **folders(tmp_path))
    run_stream(config, requests, tmp_path / "model", None, architecture=STARCODER, **folders(tmp_path))
    assert json.loads((folders(tmp_path)["out_dir"] / "metrics.jsonl").read_text())
