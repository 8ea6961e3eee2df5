"""What subcommands share: options in words, loading a model, and errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from coachhook.errors import CoachHookError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ModelArgument = Annotated[str, typer.Argument(help="model directory or hub id")]
DtypeOption = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: as the model was saved")]
ArchitectureOption = Annotated[
    str | None, typer.Option(help="of an unknown family: blocks=...,rewrite_module=...,final_norm=...")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: the GPU where there is one")]


def parse_layers(text: str) -> list[int]:
    """Layer numbers, from a list such as 13,14,15.

    Raises:
        CoachHookError: it is no such list.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise CoachHookError(f"--layers: {text!r} is not a list of numbers such as 13,14,15") from None


def choose_device(name: str) -> str:
    """The device that is meant, with "auto" decided.

    Raises:
        CoachHookError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch's errors for a word it does not know and a GPU not there
        raise CoachHookError(f"--device: {name} cannot be used ({str(error).splitlines()[0]})") from None
    return name


def parse_architecture(text: str | None) -> dict[str, str] | None:
    """Names of a model's parts, from a list such as blocks=h,rewrite_module=mlp.c_proj,final_norm=ln_f."""
    return text and dict(part.partition("=")[::2] for part in text.split(","))


def load(
    model: str,
    dtype: str = "auto",
    device: str = "cpu",
    architecture: dict[str, str] | None = None,
    device_map: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer.

    Raises:
        CoachHookError: they cannot be loaded.
    """
    from coachhook.loading import load_base_model

    try:
        return load_base_model(model, device, device_map, architecture, dtype)
    except CoachHookError:
        raise
    except (OSError, ValueError) as error:  # transformers' errors for a missing, unreachable or foreign model
        reason = str(error).splitlines()[0]
        raise CoachHookError(f"MODEL: {model} cannot be loaded ({reason}); give a directory or a hub id") from None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line and status 1 where the user can mend the cause."""
    try:
        yield
    except CoachHookError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
