"""`coachhook plan`: what a covariance and a stream of edits will need on this machine, before any of it is started."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coachhook.cli.shared import (
    DeviceOption,
    DtypeOption,
    ModelArgument,
    choose_device,
    one_line_errors,
    parse_layers,
)

if TYPE_CHECKING:
    from coachhook.needs import Available, Needs


def plan(
    model: ModelArgument,
    layers: Annotated[str, typer.Option(help="layers to be edited, such as 13,14,15")],
    method: Annotated[str, typer.Option(help="editing method, see `coachhook methods`")] = "coachhook",
    edits: Annotated[int, typer.Option(min=1, help="edits of the stream")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="edits per step")] = 30,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="edits between evaluations; default: all")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="tokens of a long prompt with its target")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of the covariance")] = 1_000_000,
    batch_tokens: Annotated[int, typer.Option(min=1, help="tokens per forward pass of the covariance")] = 8192,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    folder: Annotated[Path, typer.Option(help="where results will be written; its disk is looked at")] = Path("."),
    trial_seconds: Annotated[float, typer.Option(min=0, help="length of the trial that times come from; 0: none")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what memory, disk, tokens and time editing a model will take here; fail where it cannot fit.

    Only the model's configuration is read.
    """
    with one_line_errors():
        from coachhook.editors import METHODS
        from coachhook.preflight import (
            Available,
            measure_speed,
            plan_covariance,
            plan_stream,
            refuse_if_too_large,
        )

        chosen, where = parse_layers(layers), choose_device(device)
        available = Available.measure(where, folder)

        def planned(speed=None) -> dict[str, Needs]:
            stream = plan_stream(
                model,
                method,
                chosen,
                edits=edits,
                batch_size=batch_size,
                evaluate_every=evaluate_every,
                prompt_tokens=prompt_tokens,
                device=where,
                dtype=dtype,
                speed=speed,
            )
            if not METHODS[method].load().needs_covariance:
                return {"stream": stream}
            sizes = {"max_tokens": max_tokens, "batch_tokens": batch_tokens}
            covariance = plan_covariance(model, chosen, **sizes, device=where, dtype=dtype, speed=speed)
            return {"covariance": covariance, "stream": stream}

        jobs = planned()
        if trial_seconds and all(needs.memory_bytes <= available.memory_bytes for needs in jobs.values()):
            jobs = planned(measure_speed(model, where, dtype, trial_seconds))
        if as_json:
            numbers = {name: asdict(needs) for name, needs in jobs.items()} | {"available": asdict(available)}
            typer.echo(json.dumps(numbers, indent=1))
        else:
            typer.echo("\n".join(line for needs in jobs.values() for line in _lines(needs, available)))
        for needs in jobs.values():
            refuse_if_too_large(needs, available)


def _lines(needs: Needs, available: Available) -> list[str]:
    from coachhook.needs import size

    def told(parts: dict[str, int]) -> str:
        return ", ".join(f"{name} {size(count)}" for name, count in parts.items())

    lines = [
        needs.job,
        f"  memory  {size(needs.memory_bytes)} of {size(available.memory_bytes)} free on {needs.device}: "
        f"{told(needs.parts)}",
    ]
    if needs.host_bytes:
        lines.append(f"  main    {size(needs.host_bytes)} of {size(available.host_bytes)} free")
    lines.append(f"  disk    {size(needs.disk_bytes)} of {size(available.disk_bytes)} free: {told(needs.disk_parts)}")
    time = "not known (no trial)" if needs.seconds is None else f"about {_duration(needs.seconds)}"
    return [*lines, f"  tokens  {needs.tokens:,}", f"  time    {time}"]


def _duration(seconds: float) -> str:
    for unit, scale in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.0f} {unit}"
    return f"{seconds:.0f} seconds"
