"""The `coachhook` command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from coachhook.errors import CoachHookError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Edit facts in a language model, batch after batch, without touching its weights."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


@app.command()
def methods() -> None:
    """List the editing methods."""
    from coachhook.editors import methods as names

    for name in names():
        typer.echo(name)


@app.command()
def covariance(
    model: Annotated[str, typer.Argument(help="model directory or hub id")],
    texts: Annotated[Path, typer.Option(help="text file, one document a line")],
    out: Annotated[Path, typer.Option(help="safetensors file to write")],
    layers: Annotated[str, typer.Option(help="layers to be edited, such as 13,14,15")],
    max_tokens: Annotated[int, typer.Option(help="stop after this many tokens")] = 1_000_000,
    background: Annotated[int, typer.Option(help="background keys kept per layer")] = 1024,
    seed: Annotated[int, typer.Option(help="seed of the background sample")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's own choice")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="of an unknown family: blocks=...,rewrite_module=...,final_norm=...")
    ] = None,
) -> None:
    """Compute the key covariances that editing needs, for all layers in one pass over a text."""
    with one_line_errors():
        import torch

        from coachhook.architectures import declare_architecture
        from coachhook.covariance import compute_covariance

        if threads is not None:
            torch.set_num_threads(threads)
        chosen = _numbers(layers)
        if not texts.is_file():
            raise CoachHookError(f"--texts: {texts} is not a file")
        loaded, tokenizer = _load(model)
        if architecture is not None:
            declare_architecture(loaded, _pairs(architecture))
        with open(texts, encoding="utf-8") as lines:
            compute_covariance(
                loaded,
                tokenizer,
                (line.rstrip("\n") for line in lines),
                chosen,
                out=out,
                max_tokens=max_tokens,
                background=background,
                seed=seed,
            )


def _load(model: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        return AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:  # transformers' errors for a missing, unreachable or foreign model
        reason = str(error).splitlines()[0]
        raise CoachHookError(f"MODEL: {model} cannot be loaded ({reason}); give a directory or a hub id") from None


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise CoachHookError(f"--layers: {text!r} is not a list of numbers such as 13,14,15") from None


def _pairs(text: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in text.split(","))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line and status 1 where the user can mend the cause."""
    try:
        yield
    except CoachHookError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
