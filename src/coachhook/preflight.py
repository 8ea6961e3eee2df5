"""What a covariance or a stream will need, before it starts: memory, disk, tokens and a rough time.

Worked out from the model's configuration (built on the meta device), so the weights need not be at hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from transformers import PretrainedConfig, PreTrainedModel

from coachhook.needs import Available, Needs, PreflightError, refuse_if_too_large
from coachhook.speed import Speed, measure_speed

__all__ = [
    "Available",
    "Needs",
    "PreflightError",
    "Speed",
    "measure_speed",
    "plan_covariance",
    "plan_stream",
    "refuse_if_too_large",
]

Model = str | os.PathLike | PretrainedConfig | PreTrainedModel


def plan_covariance(
    model: Model,
    layers: Sequence[int],
    *,
    max_tokens: int = 1_000_000,
    batch_tokens: int = 8192,
    document_tokens: int = 8192,
    background: int = 1024,
    device: str = "cpu",
    dtype: str = "auto",
    speed: Speed | None = None,
) -> Needs:
    """What `compute_covariance` with these arguments will need.

    Arguments:
        model: a directory or hub id (only its configuration is read), a configuration, or a loaded model.
        dtype: "float32", "float16", "bfloat16", or "auto": as the model was saved.
        speed: from `measure_speed`, for the time.
    """
    raise NotImplementedError


def plan_stream(
    model: Model,
    method: str,
    layers: Sequence[int],
    *,
    edits: int,
    batch_size: int,
    evaluate_every: int | None = None,
    prompt_tokens: int = 32,
    hyperparameters: Mapping[str, object] | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    speed: Speed | None = None,
) -> Needs:
    """What a stream of `edits` requests in batches of `batch_size` will need.

    Arguments:
        model, dtype, speed: as in `plan_covariance`.
        evaluate_every: edits between two evaluations; None: after the last batch only.
        prompt_tokens: of a request's longest prompt with its target.
        hyperparameters: of the method, where they differ from its defaults.
    """
    raise NotImplementedError
