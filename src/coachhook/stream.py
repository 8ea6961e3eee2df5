"""A stream: consecutive batches on one model, evaluated on the way; killed at any moment, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from coachhook.edit_request import EditRequest, RequestError, mark_superseded
from coachhook.editor import Editor
from coachhook.journal import read_step, write_step, write_text
from coachhook.metrics import PROTOCOLS, Answers, Question, predict, questions, score, summarise
from coachhook.tokens import encode

logger = logging.getLogger(__name__)
_CHECKPOINT_FILE = re.compile(r"\.?(\d{6}\.(safetensors|records\.parquet|metrics\.jsonl)|stream\.json)(\.\d+\.tmp)?")


class StreamConfig(BaseModel):
    """One stream."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    hyperparameters: dict = Field(default_factory=dict)
    edits: int = Field(gt=0, description="requests in the stream")
    batch_size: int = Field(gt=0, description="requests per step; the last batch may be smaller")
    evaluate_every: int = Field(gt=0, description="edits between two evaluations; the last step always has one")
    protocols: tuple[str, ...] = Field(
        ("easyedit",), min_length=1, description="the first at every evaluation, the others after the last step only"
    )
    z_scores: bool = Field(False, description="also write the z-scores of the final model")
    seed: int = 0

    def evaluation_steps(self) -> list[int]:
        """Steps (from 1) after which all earlier requests are evaluated."""
        last = -(-self.edits // self.batch_size)
        every = max(1, self.evaluate_every // self.batch_size)
        return sorted({*range(every, last + 1, every), last})


def draw_requests(requests: Sequence[EditRequest], count: int, seed: int) -> list[EditRequest]:
    """`count` of the requests in an order drawn from `seed`, with `superseded` marked for that order.

    Raises:
        RequestError: there are fewer.
    """
    if count > len(requests):
        raise RequestError(f"the stream wants {count} edits, the data set has {len(requests)}; lower edits")
    return mark_superseded(random.Random(seed).sample(list(requests), count))


def run_stream(
    config: StreamConfig,
    requests: Sequence[EditRequest],
    model_dir: str | os.PathLike,
    covariance: str | os.PathLike | None,
    *,
    out_dir: str | os.PathLike,
    checkpoint_dir: str | os.PathLike,
    code: str = "",
) -> None:
    """Edit and evaluate one stream; write `metrics.jsonl` and `records.parquet` (and `zscores.parquet`) to `out_dir`.

    After each batch its update and evaluation are stored in `checkpoint_dir`. Started again with the same
    arguments, the stream replays them and ends with the same bytes as an unbroken run; with other arguments it
    starts afresh.

    Arguments:
        requests: the pool that the stream is drawn from.
        model_dir: Hugging Face directory or id.
        code: identity of the program, part of the checkpoint's identity.

    Raises:
        CoachHookError: bad input, before any work.
    """
    for protocol in config.protocols:
        if protocol not in PROTOCOLS:
            raise RequestError(f"protocol {protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}")
    stream = draw_requests(requests, config.edits, config.seed)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    editor = Editor(model, tokenizer, config.method, covariance, **{"seed": config.seed, **config.hyperparameters})
    editor.check(stream)
    checkpoint = _open_checkpoint(Path(checkpoint_dir), _identity(config, stream, model_dir, covariance, code))
    evaluation = _Evaluation(config, editor, stream)
    started, fresh = time.monotonic(), 0
    batches = [stream[i : i + config.batch_size] for i in range(0, len(stream), config.batch_size)]
    for step, batch in enumerate(batches, 1):
        update = read_step(checkpoint, step)
        if update is None:
            write_step(checkpoint, step, editor.edit(batch).update)
            fresh += 1
        else:
            editor.replay(update)
        note = ""
        if step in config.evaluation_steps():
            note = evaluation.run(step, checkpoint)
        left = (time.monotonic() - started) / max(fresh, 1) * (len(batches) - step)
        logger.info("step %d of %d%s, about %.0f s left", step, len(batches), note, left)
    _write_results(config, editor, stream, checkpoint, Path(out_dir))
    editor.close()


class _Evaluation:
    """Evaluates all requests edited so far; the base model's answers are computed once per stream."""

    def __init__(self, config: StreamConfig, editor: Editor, stream: Sequence[EditRequest]):
        self._config, self._editor, self._stream = config, editor, stream
        self._asked = questions(stream)
        with editor.disabled():
            self._base = {protocol: self._predict(self._asked, protocol) for protocol in config.protocols}

    def run(self, step: int, checkpoint: Path) -> str:
        """Write records and metrics of this step unless they are there; a few words on what came out."""
        records_path, metrics_path = _evaluation_paths(checkpoint, step)
        if not metrics_path.exists():  # written last
            edits = min(step * self._config.batch_size, len(self._stream))
            count = sum(question.request < edits for question in self._asked)
            rows, metrics = [], []
            last = step == self._config.evaluation_steps()[-1]
            for protocol in self._config.protocols if last else self._config.protocols[:1]:
                scores = self._scores(count, protocol)
                rows.append(self._records(step, edits, protocol, scores))
                metrics.append(self._metrics(step, edits, protocol, scores))
            _write_parquet(pd.concat(rows, ignore_index=True), records_path)
            write_text(metrics_path, "".join(json.dumps(row) + "\n" for row in metrics))
        first = json.loads(metrics_path.read_text().splitlines()[0])
        shown = {name: first[name] for name in ("reliability", "generality", "locality")}
        return ": " + ", ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)

    def _scores(self, count: int, protocol: str) -> list[float]:
        asked, base = self._asked[:count], self._base[protocol][:count]
        return score(self._editor.tokenizer, asked, self._predict(asked, protocol), base, protocol)

    def _predict(self, asked: Sequence[Question], protocol: str) -> Answers:
        return predict(self._editor.model, self._editor.tokenizer, asked, protocol)

    def _records(self, step: int, edits: int, protocol: str, scores: Sequence[float]) -> pd.DataFrame:
        asked = self._asked[: len(scores)]
        frame = pd.DataFrame(
            {
                "step": step,
                "edits": edits,
                "batch": [question.request // self._config.batch_size + 1 for question in asked],
                "request": [question.request for question in asked],
                "case_id": [str(self._stream[question.request].case_id) for question in asked],
                "kind": [question.kind for question in asked],
                "prompt": [question.index for question in asked],
                "protocol": protocol,
                "score": scores,
                "superseded": [self._stream[question.request].superseded for question in asked],
            }
        )
        types = {"step": "int32", "edits": "int32", "batch": "int32", "request": "int32", "prompt": "int16"}
        return frame.astype({**types, "score": "float32"})

    def _metrics(self, step: int, edits: int, protocol: str, scores: Sequence[float]) -> dict:
        asked = self._asked[: len(scores)]
        everything = summarise(asked, scores)
        first = (step - 1) * self._config.batch_size
        latest = [(q, value) for q, value in zip(asked, scores, strict=True) if q.request >= first]
        current = summarise(*zip(*latest, strict=True))
        row = {
            "step": step,
            "edits": edits,
            "protocol": protocol,
            **asdict(everything),
            "mean": everything.mean,
        }
        row |= {f"{name}_current_batch": value for name, value in asdict(current).items()}
        thresholds = self._editor.thresholds()
        row["alpha"] = thresholds and {str(layer): value for layer, value in thresholds.items()}
        return row


def _evaluation_paths(checkpoint: Path, step: int) -> tuple[Path, Path]:
    return checkpoint / f"{step:06d}.records.parquet", checkpoint / f"{step:06d}.metrics.jsonl"


def _write_results(
    config: StreamConfig, editor: Editor, stream: Sequence[EditRequest], checkpoint: Path, out: Path
) -> None:
    """Put the evaluations of all steps together, in order."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [_evaluation_paths(checkpoint, step) for step in config.evaluation_steps()]
    if config.z_scores:
        _write_parquet(pd.DataFrame(_z_score_rows(editor, stream)), out / "zscores.parquet")
    records = pd.concat([pd.read_parquet(path) for path, _ in paths], ignore_index=True)
    _write_parquet(records, out / "records.parquet")
    write_text(out / "metrics.jsonl", "".join(path.read_text() for _, path in paths))


def _z_score_rows(editor: Editor, stream: Sequence[EditRequest]) -> Iterator[dict]:
    """z of each token of edit prompts and paraphrases: the edited subject's last token against the others."""
    prompts = [
        (kind, position, text, request.subject_span(text)[1])
        for position, request in enumerate(stream)
        for kind, texts in (("edit", [request.text]), ("paraphrase", request.paraphrase_texts))
        for text in texts
        if request.subject.lower() in text.lower()
    ]
    for start in range(0, len(prompts), 256):
        group = prompts[start : start + 256]
        for layer, z, real in editor.z_scores([text for _, _, text, _ in group]):
            for row, (kind, position, text, end) in enumerate(group):
                subject = encode(editor.tokenizer, text, subject_end=end).subject_last
                for place, value in enumerate(z[row][real[row]].tolist()):
                    role = "subject" if place == subject else "other"
                    yield {"layer": layer, "kind": kind, "request": position, "role": role, "z": value}


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    frame.to_parquet(temporary, index=False)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _identity(
    config: StreamConfig,
    stream: Sequence[EditRequest],
    model_dir: str | os.PathLike,
    covariance: str | os.PathLike | None,
    code: str,
) -> str:
    """A digest of all that the stream's results depend on."""
    digest = hashlib.sha256(code.encode())
    digest.update(config.model_dump_json().encode())
    digest.update(json.dumps([asdict(request) for request in stream], sort_keys=True).encode())
    digest.update(str(torch.get_num_threads()).encode())  # sums are split by thread
    weights = sorted(Path(model_dir).glob("*.safetensors")) if Path(model_dir).is_dir() else []
    for path in [*weights, *([covariance] if covariance is not None else [])]:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _open_checkpoint(directory: Path, identity: str) -> Path:
    """The checkpoint of this very stream; one of another stream is cleared, and nothing else that lies there."""
    marker = directory / "stream.json"
    if not marker.exists() or json.loads(marker.read_text()).get("identity") != identity:
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if _CHECKPOINT_FILE.fullmatch(path.name):
                path.unlink()
        write_text(marker, json.dumps({"identity": identity}) + "\n")
    return directory
