"""A stream: consecutive batches on one model, evaluated on the way; killed at any moment, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from coachhook.base_answers import base_answers
from coachhook.cost import StepCost, cost_path, measure_forward, write_costs, write_step_cost
from coachhook.edit_request import EditRequest
from coachhook.editor import Editor
from coachhook.editors.base import Update
from coachhook.evaluation import Evaluation
from coachhook.journal import pack_step, read_step, step_path
from coachhook.loading import load_base_model
from coachhook.metrics import check_protocol, questions
from coachhook.metrics.ability import AbilityConfig, check_tasks
from coachhook.side_effects import SideEffects, task_files
from coachhook.stream_draw import draw_requests
from coachhook.whole_files import file_digest, read_checked, write_checked

logger = logging.getLogger(__name__)
_CHECKPOINT_FILE = re.compile(
    r"\.?(\d{6}\.(safetensors|records\.parquet|metrics\.jsonl|cost\.json)|stream\.json"
    r"|(fluency|ability)\.(base|edited)\.json)(\.sha256)?(\.[\w-]+\.tmp)?"
)
_TIMED_PROMPTS = 32


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
    round: Literal["consecutive", "single"] = Field(
        "consecutive", description="each batch on top of the earlier ones, or each from the base model"
    )
    fluency: int | None = Field(
        None, gt=0, description="edit prompts that the base and the final model continue; default: none"
    )
    ability: AbilityConfig | None = Field(
        None, description="tasks that the base and the final model are put to; default: none"
    )
    seed: int = 0

    def evaluation_steps(self) -> list[int]:
        """Steps (from 1) after which is evaluated: all earlier requests, or in a single round each batch alone."""
        last = -(-self.edits // self.batch_size)
        every = 1 if self.round == "single" else max(1, self.evaluate_every // self.batch_size)
        return sorted({*range(every, last + 1, every), last})


def run_stream(
    config: StreamConfig,
    requests: Sequence[EditRequest],
    model_dir: str | os.PathLike,
    covariance: str | os.PathLike | None,
    *,
    out_dir: str | os.PathLike,
    checkpoint_dir: str | os.PathLike,
    code: str = "",
    trained_editor: str | os.PathLike | None = None,
    base_answers_dir: str | os.PathLike | None = None,
    architecture: Mapping[str, str] | None = None,
    device: str = "auto",
    device_map: str | None = None,
) -> None:
    """Edit and evaluate one stream; write `metrics.jsonl`, `records.parquet`, `cost.jsonl`.

    Where the stream asks for them also `zscores.parquet`, `fluency.json` and `ability.json`, whose numbers stand in
    the last rows of `metrics.jsonl` too.

    After each batch its update and evaluation are stored in `checkpoint_dir`. Started again with the same
    arguments, the stream replays them and ends with the same bytes as an unbroken run (but for `cost.jsonl`, which
    holds times); with other arguments it starts afresh.

    Arguments:
        requests: the pool that the stream is drawn from.
        model_dir: Hugging Face directory or id.
        code: identity of the program, part of the checkpoint's identity.
        trained_editor: file of the trained editor, for methods that need one.
        base_answers_dir: where the base model's answers are kept for other streams of the same requests.
        device, device_map, architecture: where the model runs and keeps its parts, see `load_base_model`.

    Raises:
        CoachHookError: bad input, before any work.
    """
    _check(config)
    stream = draw_requests(requests, config.edits, config.seed)
    model, tokenizer = load_base_model(model_dir, device, device_map, architecture)
    settings = {"seed": config.seed, **config.hyperparameters}
    model_bytes = sum(parameter.nbytes for parameter in model.parameters())
    editor = Editor(model, tokenizer, config.method, covariance, trained_editor=trained_editor, **settings)
    editor.check(stream)
    model_identity = _model_identity(model_dir, f"{device_map or model.device.type} {model.dtype}")
    declared = "" if architecture is None else json.dumps(architecture, sort_keys=True)
    files = [covariance, trained_editor, *task_files(config)]
    identity = _identity(config, stream, model_identity, files, code + declared)
    checkpoint = _open_checkpoint(Path(checkpoint_dir), identity)
    asked = questions(stream)
    base = {name: base_answers(editor, asked, name, base_answers_dir, model_identity) for name in config.protocols}
    evaluation = Evaluation(config, editor, stream, checkpoint, base)
    effects = SideEffects(config, editor, stream, checkpoint)
    effects.measure("base", base_answers_dir, model_identity)
    _run_steps(config, editor, stream, evaluation, checkpoint)
    effects.measure("edited")
    evaluation.write(Path(out_dir), effects.numbers())
    effects.write(Path(out_dir))
    forward = measure_forward(editor, [request.text for request in stream[-_TIMED_PROMPTS:]], model_bytes)
    write_costs(checkpoint, config.evaluation_steps()[-1], forward, Path(out_dir) / "cost.jsonl")
    editor.close()


def _check(config: StreamConfig) -> None:
    for protocol in config.protocols:
        check_protocol(protocol)
    if config.ability is not None:
        check_tasks(config.ability.tasks, config.ability.include_path)


def _run_steps(
    config: StreamConfig, editor: Editor, stream: Sequence[EditRequest], evaluation: Evaluation, checkpoint: Path
) -> None:
    """Every batch: replayed where it was edited before, else edited and stored; then evaluated."""
    started, fresh = time.monotonic(), 0
    batches = [stream[i : i + config.batch_size] for i in range(0, len(stream), config.batch_size)]
    for step, batch in enumerate(batches, 1):
        if config.round == "single":
            editor.rollback(0)
        update = _stored(checkpoint, step)
        if update is None:
            _edit(editor, step, batch, checkpoint)
            fresh += 1
        else:
            editor.replay(update, batch)
        note = evaluation.run(step) if step in config.evaluation_steps() else ""
        left = (time.monotonic() - started) / max(fresh, 1) * (len(batches) - step)
        logger.info("step %d of %d%s, about %.0f s left", step, len(batches), note, left)


def _edit(editor: Editor, step: int, batch: Sequence[EditRequest], checkpoint: Path) -> None:
    """Edit a batch and store the step; its cost first, as the step's own file says that the step is done."""
    started = time.perf_counter()
    update = editor.edit(batch).update
    seconds = time.perf_counter() - started
    packed = pack_step(step, update)
    edits = sum(len(applied.requests) for applied in editor.journal)
    write_step_cost(checkpoint, StepCost(step, edits, seconds, editor.state_bytes, len(packed)))
    write_checked(step_path(checkpoint, step), packed)


def _stored(checkpoint: Path, step: int) -> Update | None:
    """What a step wrote; None where the step is not done, or its files are not what was stored."""
    whole = [read_checked(path(checkpoint, step)) for path in (step_path, cost_path)]
    return None if None in whole else read_step(checkpoint, step)


def _model_identity(model_dir: str | os.PathLike, placed: str) -> str:
    """A digest of the base model and of what the bits of its answers depend on besides."""
    directory = Path(model_dir)
    digest = hashlib.sha256(f"{placed} {torch.get_num_threads()}".encode())  # sums are split by thread
    if not directory.is_dir():
        digest.update(str(model_dir).encode())
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(file_digest(path))
    return digest.hexdigest()


def _identity(
    config: StreamConfig,
    stream: Sequence[EditRequest],
    model_identity: str,
    files: Sequence[str | os.PathLike | None],
    code: str,
) -> str:
    """A digest of all that the stream's results depend on."""
    digest = hashlib.sha256(f"{code} {model_identity}".encode())
    digest.update(config.model_dump_json().encode())
    digest.update(json.dumps([asdict(request) for request in stream], sort_keys=True).encode())
    for path in filter(None, files):
        digest.update(file_digest(path))
    return digest.hexdigest()


def _open_checkpoint(directory: Path, identity: str) -> Path:
    """The checkpoint of this very stream; one of another stream is cleared, and nothing else that lies there."""
    marker = directory / "stream.json"
    stored = json.dumps({"identity": identity}).encode() + b"\n"
    same = read_checked(marker) == stored
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        unfinished = path.suffix == ".tmp"  # a kill leaves the file that was being written
        if _CHECKPOINT_FILE.fullmatch(path.name) and (unfinished or not same):
            path.unlink()
    if not same:
        write_checked(marker, stored)
    return directory
