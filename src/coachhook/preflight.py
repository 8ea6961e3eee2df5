"""What a covariance, a training or a stream will need, before it starts: memory, disk, tokens and a rough time.

Worked out from the model's configuration (built on the meta device), so the weights need not be at hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from coachhook.architectures import ModelParts
from coachhook.covariance_memory import LIBRARIES, covariance_memory, weight_bytes
from coachhook.editors.leverage import LeverageHook
from coachhook.editors.leverage_needs import leverage_gate_needs
from coachhook.editors.mend import Mend
from coachhook.editors.mend_needs import mend_loss_needs
from coachhook.editors.serac import Serac
from coachhook.editors.serac_needs import serac_loss_needs
from coachhook.hyperparameters import HyperparameterError, configure, registered
from coachhook.model_shape import Model, model_shape
from coachhook.needs import Available, Needs, PreflightError, refuse_if_too_large
from coachhook.speed import Speed, measure_speed
from coachhook.stream import StreamConfig
from coachhook.stream_needs import (
    GateNeeds,
    StreamShape,
    changes_bytes,
    covariance_bytes,
    evaluation_bytes,
    journal_bytes,
    past_keys_bytes,
    solver_bytes,
    stream_seconds,
    stream_tokens,
    target_bytes,
    training_bytes,
)
from coachhook.training_needs import (
    LossNeeds,
    TrainingShape,
    checkpoint_bytes,
    network_bytes,
    training_disk,
    training_memory,
    training_seconds,
    training_tokens,
)

__all__ = [
    "Available",
    "Needs",
    "PreflightError",
    "Speed",
    "measure_speed",
    "plan_covariance",
    "plan_stream",
    "plan_training",
    "refuse_if_too_large",
]

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_LOSS_NEEDS: dict[type, Callable[[TrainingShape], LossNeeds]] = {Mend: mend_loss_needs, Serac: serac_loss_needs}
"""By method what the loss that its editor is trained on takes."""

_GATE_NEEDS: dict[type, Callable[[StreamShape], GateNeeds]] = {LeverageHook: leverage_gate_needs}
"""By method what its gate takes, where that is more than a number per layer."""


def plan_covariance(
    model: Model,
    layers: Sequence[int],
    *,
    max_tokens: int = 1_000_000,
    batch_tokens: int = 8192,
    document_tokens: int = 8192,
    background: int = 4096,
    device: str = "cpu",
    dtype: str = "auto",
    architecture: Mapping[str, str] | None = None,
    speed: Speed | None = None,
) -> Needs:
    """What `compute_covariance` with these arguments will need.

    Arguments:
        model: a directory or hub id (only its configuration is read), a configuration, or a loaded model.
        dtype: "float32", "float16", "bfloat16", or "auto": as the model was saved.
        architecture: where a model of an unknown family keeps its parts (see `Architecture`).
        speed: from `measure_speed`, for the time.

    Raises:
        ModelShapeError, ArchitectureError: the model cannot be built, or has no such layer.
    """
    parts = model_shape(model, dtype, architecture)
    layers = sorted(set(layers))
    longest = min(parts.context_length, document_tokens)
    on_cpu = torch.device(device).type == "cpu"
    memory = covariance_memory(parts, layers, max_tokens, batch_tokens, longest, background, on_cpu)
    result = memory["covariance sums"] + memory["sample of keys"]
    disk = {"covariance": result, "unfinished sums": result, "model to download": _download(model, parts)}
    seconds = None
    if speed is not None:
        products = sum(parts.width(layer) ** 2 for layer in layers) * speed.product
        seconds = max_tokens * ((layers[-1] + 1) * speed.block + products)
    host = max(memory["weights"], result) + LIBRARIES  # weights pass through main memory
    job = f"covariance of {_name(model)}, layers {', '.join(map(str, layers))}"
    return _needs(job, device, memory, disk, max_tokens, seconds, host)


def plan_stream(
    model: Model,
    method: str,
    layers: Sequence[int],
    *,
    edits: int,
    batch_size: int,
    evaluate_every: int | None = None,
    prompt_tokens: int = 32,
    background: int = 4096,
    hyperparameters: Mapping[str, object] | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    architecture: Mapping[str, str] | None = None,
    speed: Speed | None = None,
) -> Needs:
    """What a stream of `edits` requests in batches of `batch_size` will need.

    Methods that locate and edit are worked out in detail; those that train weights are taken to keep them with a
    gradient and Adam's moments, and have no time.

    Arguments:
        model, dtype, architecture, speed: as in `plan_covariance`.
        evaluate_every: edits between two evaluations; None: after the last batch only.
        prompt_tokens: of a request's longest prompt with its target.
        background: keys per layer that the covariance holds a sample of.
        hyperparameters: of the method, where they differ from its defaults.

    Raises:
        ModelShapeError, ArchitectureError: the model cannot be built, or has no such layer.
        HyperparameterError: there is no such method, or it has no such hyper-parameter.
    """
    entry = registered(method)
    given = {**entry.preset, "layers": tuple(sorted(set(layers))), **(hyperparameters or {})}
    method_class = entry.load().variant(given)
    config = configure(method, method_class.config_class, given)
    every = edits if evaluate_every is None else evaluate_every
    stream = StreamConfig(method=method, edits=edits, batch_size=batch_size, evaluate_every=every)
    parts = model_shape(model, dtype, architecture)
    shape = StreamShape(parts, method_class, config, stream, min(prompt_tokens, parts.context_length), background)
    if method_class in _GATE_NEEDS:
        shape = replace(shape, gate=_GATE_NEEDS[method_class](shape))
    on_cpu = torch.device(device).type == "cpu"
    search = target_bytes(shape, on_cpu) if shape.locates else training_bytes(shape)
    memory = {
        "weights": weight_bytes(parts),
        "changes of the weights": changes_bytes(shape),
        "solver": solver_bytes(shape),
        "past keys": past_keys_bytes(shape),
        "the gate": shape.gate.held,
        "a batch of edits": max(search, shape.gate.making, evaluation_bytes(shape)),
        "libraries": LIBRARIES,
    }
    here = {"covariance": covariance_bytes(shape), "journal": journal_bytes(shape)}
    if on_cpu:
        memory |= here
    else:  # on a CPU the gate reads the covariance's own
        memory["the gate"] += shape.gate.background
    host = max(memory["weights"], sum(here.values())) + LIBRARIES
    disk = {"journal": journal_bytes(shape), "model to download": _download(model, parts)}
    seconds = None if speed is None else stream_seconds(shape, speed)
    job = f"{method} on {_name(model)}, {edits} edits in batches of {batch_size}"
    return _needs(job, device, memory, disk, sum(stream_tokens(shape)), seconds, host)


def plan_training(
    model: Model,
    method: str,
    layers: Sequence[int],
    training: Mapping[str, object] | None = None,
    *,
    prompt_tokens: int = 32,
    device: str = "cpu",
    dtype: str = "auto",
    architecture: Mapping[str, str] | None = None,
    speed: Speed | None = None,
) -> Needs:
    """What the training of a method's editor (MEND, SERAC) will need, should it take all its steps.

    Arguments:
        model, dtype, architecture, speed: as in `plan_covariance`.
        training: hyper-parameters of the training, where they differ from its defaults.
        prompt_tokens: of a request's or probe's longest prompt with its answer.

    Raises:
        ModelShapeError, ArchitectureError: the model cannot be built, or has no such layer.
        HyperparameterError: the method has no editor to train, or its training no such hyper-parameter.
    """
    entry = registered(method)
    method_class = entry.load()
    if method_class not in _LOSS_NEEDS:
        raise HyperparameterError(f"method: {method} has no editor to train; plan its stream")
    config = configure(method, method_class.config_class, {**entry.preset, "layers": tuple(sorted(set(layers)))})
    settings = configure(method, method_class.training_class, dict(training or {}))
    parts = model_shape(model, dtype, architecture)
    for layer in config.layers:
        parts.rewrite_module(layer)  # refuses layers that are not there
    shape = TrainingShape(parts, config, settings, min(prompt_tokens, parts.context_length))
    loss = _LOSS_NEEDS[method_class](shape)
    network, on_cpu = network_bytes(loss.network), torch.device(device).type == "cpu"
    memory = {"weights": weight_bytes(parts), **training_memory(shape, loss, on_cpu), "libraries": LIBRARIES}
    disk = {**training_disk(network), "model to download": _download(model, parts)}
    seconds = None if speed is None else training_seconds(shape, loss, speed)
    host = max(memory["weights"], checkpoint_bytes(network)) + LIBRARIES
    job = f"training {method} for {_name(model)}, {settings.steps} steps"
    needs = _needs(job, device, memory, disk, training_tokens(shape, loss), seconds, host)
    return replace(needs, untimed="a trial of the model does not run what is trained")


def _needs(
    job: str,
    device: str,
    memory: dict[str, int],
    disk: dict[str, int],
    tokens: int,
    seconds: float | None,
    host: int,
) -> Needs:
    """host: main memory, where the device has a memory of its own."""
    memory, disk = ({name: count for name, count in parts.items() if count} for parts in (memory, disk))
    host = host if torch.device(device).type != "cpu" else 0
    return Needs(sum(memory.values()), sum(disk.values()), tokens, seconds, memory, disk, job, device, host)


def _download(model: Model, parts: ModelParts) -> int:
    """Bytes of the weights, where they are on the hub and not here."""
    if not isinstance(model, str) or Path(model).exists():
        return 0
    if any(isinstance(try_to_load_from_cache(model, name), str) for name in _WEIGHT_FILES):
        return 0
    return weight_bytes(parts)


def _name(model: Model) -> str:
    config = getattr(model, "config", model)
    return str(model) if isinstance(model, str | os.PathLike) else config.name_or_path or config.model_type
