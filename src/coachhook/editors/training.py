"""The training loop of the trained editors: killed at any moment, it goes on where it was and ends with the same bytes.

Nothing is drawn from a generator that lives on between steps: each step draws from its own, seeded by the training's
seed and the step's number, so the number is the generator's position.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from coachhook.covariance_file import model_digest
from coachhook.edit_request import EditRequest
from coachhook.editors.base import MethodConfig
from coachhook.editors.trained_editor import (
    TrainedEditor,
    TrainedEditorError,
    write_trained_editor,
)
from coachhook.tensor_files import DamagedFileError, read_tensors, write_tensors

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LOG_LINES = 5.0
SECONDS_BETWEEN_CHECKPOINTS = 10.0

Loss = Callable[[Sequence[EditRequest], random.Random], Tensor]
"""Loss of a batch of requests; all that is drawn for it comes from the generator given."""


class EditorTraining(BaseModel):
    """Hyper-parameters that every training has. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(100_000, ge=1, description="optimiser steps at most")
    batch_size: int = Field(1, ge=1, description="requests edited together")
    accumulate: int = Field(10, ge=1, description="such batches per optimiser step")
    learning_rate: float = Field(1e-6, gt=0, description="Adam's learning rate")
    gradient_clip: float = Field(100.0, gt=0, description="largest norm of the gradient")
    validation_share: float = Field(0.1, gt=0, lt=1, description="share of the requests held out for early stopping")
    validate_every: int = Field(500, ge=1, description="steps between two measurements of the held-out loss")
    patience: int = Field(40, ge=1, description="training ends after so many measurements without a better one")


@dataclass
class Progress:
    """Where a training stands: steps done, and the best held-out loss with the step it was measured at."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0


class Trainer:
    """Adam on `loss` over a network's parameters; the best network on held-out requests is kept.

    Raises:
        TrainedEditorError: there are too few requests to hold any out.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        requests: Sequence[EditRequest],
        training: EditorTraining,
        seed: int,
        groups: Iterable[dict] | None = None,
    ):
        if len(requests) < 2:
            raise TrainedEditorError(f"requests: {len(requests)} to train on; give at least 2, one is held out")
        shuffled = random.Random(f"{seed} split").sample(list(requests), len(requests))
        held_out = min(max(1, round(training.validation_share * len(shuffled))), len(shuffled) - 1)
        self._held_out, self._requests = shuffled[:held_out], shuffled[held_out:]
        self._network, self._loss, self._training, self._seed = network, loss, training, seed
        self._parameters = list(network.parameters())
        self._optimiser = torch.optim.Adam(groups or [{"params": self._parameters}], lr=training.learning_rate)
        self._progress = Progress()
        self._best: dict[str, Tensor] = {}

    def run(self, checkpoint: str | os.PathLike, identity: str) -> Progress:
        """Train to the end; the network then holds the best weights.

        Arguments:
            checkpoint: file to go on from, where it is of a training of the same `identity`; else it is replaced.

        Raises:
            TrainedEditorError: no held-out loss was finite.
        """
        checkpoint, progress = Path(checkpoint), self._progress
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        self._resume(checkpoint, identity)
        logged = saved = time.monotonic()
        losses: list[float] = []
        while not self._done():
            losses.append(self._step())
            progress.step += 1
            if progress.step % self._training.validate_every == 0 or progress.step == self._training.steps:
                self._validate()
            if self._done() or time.monotonic() - logged >= SECONDS_BETWEEN_LOG_LINES:
                self._log(losses)
                losses, logged = [], time.monotonic()
            if time.monotonic() - saved >= SECONDS_BETWEEN_CHECKPOINTS:
                write_tensors(checkpoint, self._state(), {"identity": identity, "progress": asdict(progress)})
                saved = time.monotonic()
        if not math.isfinite(progress.best_loss):
            raise TrainedEditorError("training: the held-out loss was never a finite number; lower learning_rate")
        self._network.load_state_dict(self._best)
        self._network.eval()
        return progress

    def _done(self) -> bool:
        training, progress = self._training, self._progress
        waited = progress.step - progress.best_step
        return progress.step >= training.steps or waited >= training.patience * training.validate_every

    def _step(self) -> float:
        """One optimiser step; its mean loss."""
        self._network.train()
        self._optimiser.zero_grad()
        rng = random.Random(f"{self._seed} step {self._progress.step}")
        size, total = min(self._training.batch_size, len(self._requests)), 0.0
        for _ in range(self._training.accumulate):
            loss = self._loss(rng.sample(self._requests, size), rng) / self._training.accumulate
            # Not backward(): the base model's parameters would gather gradients too.
            for parameter, gradient in zip(
                self._parameters, torch.autograd.grad(loss, self._parameters, allow_unused=True), strict=True
            ):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            total += loss.item()
        nn.utils.clip_grad_norm_(self._parameters, self._training.gradient_clip)
        self._optimiser.step()
        return total

    @torch.no_grad()
    def _validate(self) -> None:
        """Measure the held-out loss, always on the same draws, and keep the network where it is the best."""
        self._network.eval()
        rng, size, total = random.Random(f"{self._seed} validation"), self._training.batch_size, 0.0
        for start in range(0, len(self._held_out), size):
            batch = self._held_out[start : start + size]
            total += self._loss(batch, rng).item() * len(batch)
        loss = total / len(self._held_out)
        if loss < self._progress.best_loss:
            self._progress.best_loss, self._progress.best_step = loss, self._progress.step
            self._best = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}

    def _log(self, losses: Sequence[float]) -> None:
        progress = self._progress
        best = f", best held-out loss {progress.best_loss:.3f} at step {progress.best_step}" if self._best else ""
        mean = sum(losses) / max(len(losses), 1)
        logger.info("step %d of at most %d: loss %.3f%s", progress.step, self._training.steps, mean, best)

    def _state(self) -> dict[str, Tensor]:
        """All that the next step depends on, besides the arguments and the step's number."""
        tensors = {f"network.{name}": tensor for name, tensor in self._network.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        for index, moments in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in moments.items()}
        return tensors

    def _resume(self, checkpoint: Path, identity: str) -> None:
        """Go on from the checkpoint where it is this very training's."""
        if not checkpoint.exists():
            return
        try:
            tensors, metadata = read_tensors(checkpoint)
        except DamagedFileError as error:
            logger.warning("%s: damaged (%s); training starts afresh", checkpoint, error)
            return
        if metadata.get("identity") != identity:
            return
        device = self._parameters[0].device
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self._network.load_state_dict(parts["network"])
        self._best = {name: tensor.to(device, copy=True) for name, tensor in parts["best"].items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimiser"].items():
            index, _, rest = name.partition(".")
            moments.setdefault(int(index), {})[rest] = tensor.clone()
        state = self._optimiser.state_dict()
        self._optimiser.load_state_dict({**state, "state": moments})
        for name, value in metadata["progress"].items():
            setattr(self._progress, name, value)
        logger.info("going on from step %d", self._progress.step)


def train_editor(
    method: str,
    network: nn.Module,
    loss: Loss,
    model: PreTrainedModel,
    config: MethodConfig,
    training: EditorTraining,
    requests: Sequence[EditRequest],
    *,
    out: str | os.PathLike,
    checkpoint: str | os.PathLike,
    seed: int,
    groups: Iterable[dict] | None = None,
    described: dict | None = None,
) -> None:
    """Train `network` on the file `checkpoint`, write the editor to `out`, then remove the checkpoint.

    Arguments:
        method: name of the method's class.
        groups: the optimiser's parameter groups; all parameters at the training's learning rate where None.
        described: what `TrainedEditor.described` is to hold.

    Raises:
        TrainedEditorError: the training cannot be done, or its checkpoint is damaged.
    """
    identity = _identity(method, model, config, training, requests, seed)
    progress = Trainer(network, loss, requests, training, seed, groups).run(checkpoint, identity)
    editor = TrainedEditor(
        network.state_dict(),
        config.model_dump(mode="json"),
        training.model_dump(mode="json"),
        asdict(progress),
        described or {},
    )
    write_trained_editor(out, editor, method, model, config.layers)
    Path(checkpoint).unlink(missing_ok=True)


def _identity(
    method: str,
    model: PreTrainedModel,
    config: MethodConfig,
    training: EditorTraining,
    requests: Sequence[EditRequest],
    seed: int,
) -> str:
    """A digest of all that a training's result depends on."""
    parts = [
        method,
        model_digest(model, config.layers),
        config.model_dump_json(),
        training.model_dump_json(),
        json.dumps([asdict(request) for request in requests], sort_keys=True),
        str(seed),
        str(torch.get_num_threads()),  # sums are split by thread
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
