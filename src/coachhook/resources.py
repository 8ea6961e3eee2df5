"""What to ask a batch system for: generous limits per kind of job, from a model's entry in models.yaml alone.

No more than arithmetic, so that a workflow can be planned in a second; `preflight` knows a job's needs exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LIBRARIES_MB = 4000  # Python, torch, CUDA, the tokenizer, the requests and their answers
_MINUTES_PER_EDIT = 0.05  # and billion parameters, evaluation included
_MINUTES_PER_MTOKEN = 1.0  # million tokens read for a covariance, and billion parameters


@dataclass(frozen=True)
class Resources:
    """Main memory and disk in MB (10⁶ bytes), minutes, and devices."""

    memory_mb: int
    disk_mb: int
    minutes: int
    gpus: int


SMALL = Resources(memory_mb=4000, disk_mb=2000, minutes=240, gpus=0)
"""For a model that is trained here, or built small."""


def fetch_resources(entry: Mapping[str, Any]) -> Resources:
    """To fetch a model: its weights on disk twice and once in memory, as some have to be converted."""
    weights = weights_mb(entry)
    return Resources(_LIBRARIES_MB + weights, 3 * weights, 120 + round(_billions(entry) * 10), gpus=0)


def covariance_resources(entry: Mapping[str, Any]) -> Resources:
    """To compute a covariance: the model, and a float64 sum per layer that is copied once."""
    settings = entry["covariance"]
    matrices = _matrices_mb(entry, settings["layers"].count(",") + 1)
    minutes = 60 + settings["max_tokens"] / 1e6 * _billions(entry) * _MINUTES_PER_MTOKEN
    return Resources(_LIBRARIES_MB + weights_mb(entry) + 3 * matrices, matrices, round(minutes), entry["gpus"])


def training_resources(entry: Mapping[str, Any]) -> Resources:
    """To train an editor (MEND, SERAC) beforehand: the model, and the editor with its optimiser's state."""
    weights = weights_mb(entry)
    return Resources(_LIBRARIES_MB + 2 * weights, weights, 24 * 60, entry["gpus"])


def stream_resources(entry: Mapping[str, Any], layers: int, edits: int) -> Resources:
    """To edit: the model, per layer C0 with its factor and a projection, and steps as factors on disk."""
    matrices = _matrices_mb(entry, layers)
    minutes = 60 + edits * _billions(entry) * _MINUTES_PER_EDIT
    memory = _LIBRARIES_MB + weights_mb(entry) + 3 * matrices
    return Resources(memory, 5000 + matrices, round(minutes), entry["gpus"])


def _billions(entry: Mapping[str, Any]) -> float:
    return entry["parameters"] / 1e9


def weights_mb(entry: Mapping[str, Any]) -> int:
    """What a model's weights take, in MB (10⁶ bytes)."""
    return round(entry["parameters"] * _BYTES[entry["dtype"]] / 1e6)


def _matrices_mb(entry: Mapping[str, Any], layers: int) -> int:
    """One float64 matrix (m×m) per layer, m being the width of the keys."""
    return round(layers * key_width(entry["config"]) ** 2 * 8 / 1e6)


def key_width(config: Mapping[str, Any]) -> int:
    """m, by the names that a config.json has for it."""
    return config.get("intermediate_size") or config.get("n_inner") or 4 * config["n_embd"]
