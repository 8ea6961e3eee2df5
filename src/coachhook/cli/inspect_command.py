"""`coachhook inspect`: what a directory of edits holds, and how often its gates fire on a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coachhook.cli.console import console, counted, percent, print_json, table, working
from coachhook.cli.shared import (
    BaseOption,
    DeviceOption,
    EditsArgument,
    JsonOption,
    folder_bytes,
    one_line_errors,
    open_edits,
    read_sample,
)

if TYPE_CHECKING:
    from coachhook.edit_request import EditRequest
    from coachhook.gate_firing import GateFiring
    from coachhook.saved_edits import SavedEdits

_THRESHOLDS = {"alpha": "α", "tau": "τ"}


def inspect(
    directory: EditsArgument,
    step: Annotated[int | None, typer.Option(min=1, help="list the requests of this step")] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(help="text file, to say how often each layer's gate fires there; loads the model; repeatable"),
    ] = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what a directory of edits holds.

    Its steps with their requests, gate thresholds (α or τ) and sizes on disk.
    Every file is checked on the way. No model is loaded, but for --texts.

    Examples:
      coachhook inspect my-edits
      coachhook inspect my-edits --step 2
      coachhook inspect my-edits --texts articles.txt
    """
    with one_line_errors():
        from coachhook.saved_edits import check_files, read_edits

        sample = read_sample(texts or [])
        saved = read_edits(directory)
        check_files(directory, saved)
        requests = [] if step is None else list(saved.first(step, directory)[-1].read(directory).requests)
        rows = _steps(saved, directory)
        firing = _firing(directory, base, device, sample) if texts else None
        if as_json:
            print_json(_json(directory, saved, rows, requests, firing))
            return
        _show_head(directory, saved, rows)
        if step is None:
            _show_steps(rows)
        else:
            _show_requests(requests)
        if firing is not None:
            _show_firing(firing)


def _steps(saved: SavedEdits, directory: Path) -> list[dict]:
    rows = []
    for number, step in enumerate(saved.steps, 1):
        read = step.read(directory)
        row = {"step": number, "time": step.time, "requests": len(read.requests)}
        row |= {"bytes": (directory / step.file).stat().st_size, "thresholds": _thresholds(read.update.info)}
        row |= {"metrics": step.metrics}
        rows.append(row)
    return rows


def _thresholds(info: dict) -> dict[str, dict[str, float]]:
    """Per layer what the gate's threshold was after a step, by its name; none for methods without a gate."""
    return {name: info[name] for name in _THRESHOLDS if info.get(name)}


def _firing(directory: Path, base: str | None, device: str, sample: list[str]) -> list[GateFiring]:
    from coachhook.gate_firing import gate_firing

    editor = open_edits(directory, base, device)
    with working():
        return gate_firing(editor, sample)


def _json(
    directory: Path, saved: SavedEdits, rows: list[dict], requests: list[EditRequest], firing: list[GateFiring] | None
) -> dict:
    return {
        "directory": str(directory),
        "step": len(rows),
        "bytes": folder_bytes(directory),
        "format": saved.format,
        "coachhook": saved.coachhook,
        "method": saved.method,
        "layers": saved.layers,
        "gate": saved.gate,
        "hyperparameters": saved.hyperparameters,
        "base_model": saved.base_model.model_dump(),
        "steps": rows,
        "requests": [asdict(request) for request in requests],
        "gate_firing": None if firing is None else [asdict(layer) | {"rate": layer.rate} for layer in firing],
    }


def _show_head(directory: Path, saved: SavedEdits, rows: list[dict]) -> None:
    from coachhook.needs import size

    model, requests = saved.base_model, sum(row["requests"] for row in rows)
    gate = "" if saved.gate is None else f", gate {saved.gate}"
    facts = {
        "edits": f"{counted(requests, 'request')} in {counted(len(rows), 'step')}, {size(folder_bytes(directory))}",
        "method": f"{saved.method}{gate}, layers {', '.join(map(str, saved.layers))}",
        "base model": f"{model.name or 'without a name'} ({model.family}, {model.layers} layers, {model.dtype})",
    }
    console().print(table(("", ""), facts.items()))


def _show_steps(rows: list[dict]) -> None:
    from coachhook.needs import size

    scores = ("reliability", "generality", "locality") if any(row["metrics"] for row in rows) else ()
    names = [name for name in _THRESHOLDS if any(name in row["thresholds"] for row in rows)]
    told = [
        (
            str(row["step"]),
            row["time"].replace("T", " ")[:16],
            str(row["requests"]),
            size(row["bytes"]),
            *(percent(row["metrics"].get("easyedit", {}).get(name)) for name in scores),
            *(_range(row["thresholds"].get(name, {})) for name in names),
        )
        for row in rows
    ]
    columns = (
        "step",
        "edited (UTC)",
        "requests",
        "size",
        *scores,
        *(f"{_THRESHOLDS[name]} by layer" for name in names),
    )
    if told:
        console().print()
        console().print(table(columns, told, right=("step", "requests", "size", *scores)))


def _range(values: dict[str, float]) -> str:
    """One number per layer, or where there are many from the lowest to the highest."""
    if len(values) > 2:
        return f"{min(values.values()):.3g} to {max(values.values()):.3g}"
    return "  ".join(f"{value:.3g}" for value in values.values())


def _show_requests(requests: list[EditRequest]) -> None:
    console().print()
    told = [
        (str(number), request.text, request.target_new, request.target_true or "")
        for number, request in enumerate(requests, 1)
    ]
    console().print(table(("", "prompt", "new answer", "old answer"), told, right=[""]))


def _show_firing(firing: list[GateFiring]) -> None:
    console().print()
    if not firing:
        console().print("This method has no hook layers, so no gate fires.")
        return
    told = [
        (str(layer.layer), percent(layer.rate), percent(layer.fired_texts / layer.texts), str(layer.fired_tokens))
        for layer in firing
    ]
    console().print(f"On {firing[0].texts} texts of {firing[0].tokens:,} tokens the edited weights answer for\n")
    names = ("layer", "% of tokens", "% of texts", "tokens")
    console().print(table(names, told, right=names))
