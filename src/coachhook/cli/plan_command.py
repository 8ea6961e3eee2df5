"""`coachhook plan`: what a covariance, a training and a stream will need on this machine, before any is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coachhook.cli.shared import (
    ArchitectureOption,
    DeviceOption,
    DtypeOption,
    ModelArgument,
    choose_device,
    one_line_errors,
    parse_architecture,
    parse_layers,
)
from coachhook.editors import DEFAULT_METHOD

if TYPE_CHECKING:
    from coachhook.needs import Available, Needs
    from coachhook.speed import Speed


def plan(
    model: ModelArgument,
    layers: Annotated[
        str | None, typer.Option(help="layers to be edited, such as 13,14,15; default: a suggestion for the model")
    ] = None,
    method: Annotated[str, typer.Option(help="editing method, see `coachhook methods`")] = DEFAULT_METHOD,
    edits: Annotated[int, typer.Option(min=1, help="edits of the stream")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="edits per step")] = 30,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="edits between evaluations; default: all")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="tokens of a long prompt with its target")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of the covariance")] = 1_000_000,
    batch_tokens: Annotated[int, typer.Option(min=1, help="tokens per forward pass of the covariance")] = 8192,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    architecture: ArchitectureOption = None,
    folder: Annotated[Path, typer.Option(help="where results will be written; its disk is looked at")] = Path("."),
    trial_seconds: Annotated[float, typer.Option(min=0, help="length of the trial that times come from; 0: none")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
) -> None:
    """Say what editing a model will take here.

    Memory, disk, tokens and time; it fails where they cannot fit. Only the
    model's configuration is read, so it need not be downloaded for this.

    Example:
      coachhook plan gpt2-xl --edits 1000 --batch-size 30
    """
    with one_line_errors():
        from coachhook.layers import suggested_layers
        from coachhook.model_shape import model_shape
        from coachhook.preflight import Available, measure_speed, refuse_if_too_large

        where, parts = choose_device(device), parse_architecture(architecture)
        common = {"device": where, "dtype": dtype, "architecture": parts}
        chosen = suggested_layers(model_shape(model, dtype, parts).model) if layers is None else parse_layers(layers)
        stream = {"edits": edits, "batch_size": batch_size, "evaluate_every": evaluate_every}
        stream |= {"prompt_tokens": prompt_tokens}
        sizes = {"max_tokens": max_tokens, "batch_tokens": batch_tokens}
        planned = partial(_planned, model, method, chosen, stream, sizes, common)
        jobs, available = planned(), Available.measure(where, folder)
        untimed = "no trial was asked for" if trial_seconds == 0 else "what does not fit is not tried"
        if trial_seconds > 0 and all(needs.memory_bytes <= available.memory_bytes for needs in jobs.values()):
            jobs, untimed = planned(measure_speed(model, where, dtype, trial_seconds)), None
        if as_json:
            numbers = {name: asdict(needs) for name, needs in jobs.items()} | {"available": asdict(available)}
            typer.echo(json.dumps(numbers, indent=1))
        else:
            _tell(jobs, available, untimed, suggested=layers is None)
        for needs in jobs.values():
            refuse_if_too_large(needs, available)
        if not as_json:
            typer.echo("Each of these fits on this machine.")


def _planned(
    model: str, method: str, layers: Sequence[int], stream: dict, sizes: dict, common: dict, speed: Speed | None = None
) -> dict[str, Needs]:
    from coachhook.editors import METHODS
    from coachhook.editors.base import TrainedMethod
    from coachhook.preflight import plan_covariance, plan_stream, plan_training

    jobs = {"stream": plan_stream(model, method, layers, **stream, **common, speed=speed)}
    method_class = METHODS[method].load()
    if issubclass(method_class, TrainedMethod):
        tokens = stream["prompt_tokens"]
        jobs = {"training": plan_training(model, method, layers, prompt_tokens=tokens, **common, speed=speed)} | jobs
    if method_class.needs_covariance:
        jobs = {"covariance": plan_covariance(model, layers, **sizes, **common, speed=speed)} | jobs
    return jobs


def _tell(jobs: dict[str, Needs], available: Available, untimed: str | None, suggested: bool) -> None:
    for needs in jobs.values():
        typer.echo("\n".join([*_lines(needs, available, untimed), ""]))
    if suggested:
        typer.echo("The layers are a suggestion (see docs/models.md); name your own with --layers.")


def _lines(needs: Needs, available: Available, untimed: str | None) -> list[str]:
    from coachhook.needs import size

    def told(name: str, count: int, free: int, where: str, parts: dict[str, int]) -> list[str]:
        head = f"  {name:<8}needs {size(count)}, {size(free)} are free{where}"
        return [head, *(f"{size(part):>17}  {what}" for what, part in parts.items())]

    lines = [needs.job[0].upper() + needs.job[1:]]
    lines += told("memory", needs.memory_bytes, available.memory_bytes, f" on {needs.device}", needs.parts)
    if needs.host_bytes:
        lines += told("and", needs.host_bytes, available.host_bytes, " in main memory", {})
    lines += told("disk", needs.disk_bytes, available.disk_bytes, "", needs.disk_parts)
    lines.append(f"  {'text':<8}{needs.tokens:,} tokens go through the model")
    time = f"not known: {untimed or needs.untimed}"
    if needs.seconds is not None:
        time = f"about {_duration(needs.seconds)}, judged by a short trial on {needs.device}"
    return [*lines, f"  {'time':<8}{time}"]


def _duration(seconds: float) -> str:
    for unit, scale in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"
