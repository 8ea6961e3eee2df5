"""What subcommands share: options in words, loading models and edits, reading files, and errors in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coachhook.errors import CoachHookError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from coachhook.edit_request import EditRequest
    from coachhook.editor import Editor

ModelArgument = Annotated[str, typer.Argument(help="model directory or hub id")]
DtypeOption = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: as the model was saved")]
ArchitectureOption = Annotated[
    str | None, typer.Option(help="of an unknown family: blocks=...,rewrite_module=...,final_norm=...")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: the GPU where there is one")]
EditsArgument = Annotated[Path, typer.Argument(metavar="DIR", help="directory of edits, as `coachhook edit` writes it")]
BaseOption = Annotated[
    str | None, typer.Option(help="base model, directory or hub id, where it has moved since the edits were saved")
]
StepOption = Annotated[int | None, typer.Option(min=0, help="as it was after this step; 0: the base model")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
RequestsOption = Annotated[
    Path, typer.Option(help="file of requests: our own JSON, CounterFact, ZsRE, KnowEdit, MQuAKE, EasyEdit's lists")
]
ProtocolOption = Annotated[
    str, typer.Option(help="easyedit (teacher forcing), generate (free generation) or rome (which answer is likelier)")
]
SAMPLE = 1000  # texts of a sample


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
    from coachhook.starting import torch  # first

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
    import coachhook.starting  # noqa: F401  first
    from coachhook.loading import ModelLoadError, load_base_model

    _be_quiet()
    try:
        return load_base_model(model, device, device_map, architecture, dtype)
    except ModelLoadError as error:
        raise CoachHookError(
            f"MODEL: {model} cannot be loaded ({error.reason}); give a directory or a hub id"
        ) from None


def open_edits(
    directory: Path, base: str | None, device: str, covariance: Path | None = None, step: int | None = None
) -> Editor:
    """The editor of a directory of edits.

    Raises:
        CoachHookError: the edits or their base model cannot be loaded, or there is no such step.
    """
    import coachhook.starting  # noqa: F401  first
    from coachhook.load_editor import load_editor
    from coachhook.saved_edits import read_edits

    read_edits(directory)  # what is wrong there is said before anything large is loaded
    _be_quiet()
    return load_editor(directory, base, device=choose_device(device), covariance=covariance, step=step)


def read_request_file(path: Path) -> list[EditRequest]:
    """Its requests, at least one.

    Raises:
        CoachHookError: it cannot be read, or a record cannot be edited.
    """
    from coachhook.requests import read_requests

    try:
        requests = read_requests(path)
    except OSError as error:
        raise CoachHookError(f"--requests: {path} cannot be read ({error.strerror or error})") from None
    if not requests:
        raise CoachHookError(f"--requests: {path} holds no requests; give at least one")
    return requests


def read_sample(sources: list[str]) -> list[str]:
    """The first documents of text files, at most 1,000, without empty ones.

    Raises:
        CoachHookError: a file cannot be read, or there is no text in them.
    """
    from coachhook.texts import open_texts

    for source in sources:
        if not Path(source).exists():
            raise CoachHookError(f"--texts: {source} is not a file or a folder")
    if not sources:
        return []
    sample = list(islice((text for text in open_texts(sources) if text.strip()), SAMPLE))
    if not sample:
        raise CoachHookError(f"--texts: there is no text in {', '.join(sources)}; give at least one line")
    return sample


def only_writer(directory: Path) -> AbstractContextManager[None]:
    """Inside, no other command writes to a directory of edits; one that is at it is waited for."""
    from coachhook.whole_files import alone

    directory = directory.absolute()
    beside = os.access(directory.parent, os.W_OK) or not directory.is_dir()
    return alone((directory.parent if beside else directory) / f".{directory.name}.lock")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and in its folders."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _be_quiet() -> None:
    """Of transformers' log only errors, and no bars of its own in a log file."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line and status 1 where the user can mend the cause."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (CoachHookError, OSError) as error:
        problem = one_line(error) or str(error).splitlines()[0]
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        problem = f"{str(error).splitlines()[0]} Take a smaller --batch-size, --dtype bfloat16 or --device cpu"
    else:
        return
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(1)
