"""`coachhook covariance`: computed from a text, or imported from published second moments, and exported as such."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coachhook.cli.console import working
from coachhook.cli.shared import (
    ArchitectureOption,
    DeviceOption,
    DtypeOption,
    ModelArgument,
    choose_device,
    load,
    one_line_errors,
    parse_architecture,
    parse_layers,
)
from coachhook.errors import CoachHookError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coachhook.covariance_file import Covariance


def covariance(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="safetensors file to write (with --export alone: to read)")],
    texts: Annotated[
        list[str] | None,
        typer.Option(
            help=".txt (one document a line), .jsonl, .parquet, also .gz, a folder of them, or a data set on the hub, "
            "such as wikimedia/wikipedia; may be given several times"
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="layers to be edited, such as 13,14,15")] = None,
    texts_config: Annotated[str | None, typer.Option(help="configuration of the hub's texts: 20231101.en")] = None,
    texts_revision: Annotated[str | None, typer.Option(help="commit of the hub's texts (needed)")] = None,
    texts_split: Annotated[str, typer.Option(help="split of the hub's texts")] = "train",
    texts_field: Annotated[str, typer.Option(help="what holds a document in .jsonl, .parquet and on the hub")] = "text",
    import_from: Annotated[
        Path | None, typer.Option("--import", help="folder of ROME's or MEMIT's .npz second moments, instead of texts")
    ] = None,
    export: Annotated[Path | None, typer.Option(help="folder to write such .npz files to as well")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="stop after this many tokens")] = 1_000_000,
    batch_tokens: Annotated[int, typer.Option(min=1, help="tokens per forward pass; memory grows with it")] = 8192,
    document_tokens: Annotated[int, typer.Option(min=1, help="read no more of a document than this")] = 8192,
    background: Annotated[int, typer.Option(min=0, help="background keys kept per layer")] = 4096,
    seed: Annotated[int, typer.Option(help="seed of the background sample")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's own choice")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            help="spread the model over several devices by accelerate, such as auto; instead of --device",
            envvar="COACHHOOK_DEVICE_MAP",
        ),
    ] = None,
    architecture: ArchitectureOption = None,
) -> None:
    r"""Compute the key covariances that most methods need, once per model.

    For all layers in one pass over a text. Killed and started again with the
    same options, it goes on where it was.

    Example:
      coachhook covariance gpt2-xl --texts articles.txt \
          --layers 13,14,15,16,17 --out c.safetensors
    """
    with one_line_errors():
        from coachhook.second_moment_files import write_second_moments
        from coachhook.texts import open_texts

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        parts = parse_architecture(architecture)
        chosen = None if layers is None else parse_layers(layers)
        if texts and import_from:
            raise CoachHookError("--texts and --import: give one of them")
        if texts:
            hub = {"config": texts_config, "revision": texts_revision, "split": texts_split}
            source = open_texts(texts, **hub, field=texts_field)
            sizes = {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "document_tokens": document_tokens}
            sizes |= {"background": background}
            loading = {"dtype": dtype, "device": choose_device(device), "architecture": parts}
            loaded, result = _compute(model, source, chosen, out, sizes, seed, loading, device_map)
        elif import_from or export:
            loaded, result = _read(model, import_from, chosen, out, parts)
        else:
            raise CoachHookError("--texts: give a text to compute the covariance from, or --import, or --export")
        if export:
            write_second_moments(result, export, loaded)


def _compute(
    model: str,
    texts: Iterable[str],
    layers: list[int] | None,
    out: Path,
    sizes: dict[str, int],
    seed: int,
    loading: dict,
    device_map: str | None,
) -> tuple[PreTrainedModel, Covariance]:
    from coachhook.covariance import compute_covariance, unfinished_path
    from coachhook.preflight import Available, plan_covariance, refuse_if_too_large

    if layers is None:
        raise CoachHookError("--layers: name the layers to be edited, such as 13,14,15")
    needs = plan_covariance(model, layers, **sizes, **loading)
    if device_map is None:  # else there is more memory than this one device's
        available = Available.measure(needs.device, out.parent)
        begun = unfinished_path(out)  # what a killed job left is part of the need, and goes when this one ends
        kept = begun.stat().st_size if begun.exists() else 0
        refuse_if_too_large(needs, replace(available, disk_bytes=available.disk_bytes + kept))
    loaded, tokenizer = load(model, **loading, device_map=device_map)
    with working(every=math.inf):  # the library's own lines stand in the log
        return loaded, compute_covariance(loaded, tokenizer, texts, layers, out=out, **sizes, seed=seed)


def _read(
    model: str, published: Path | None, layers: list[int] | None, out: Path, architecture: dict[str, str] | None
) -> tuple[PreTrainedModel, Covariance]:
    """Published second moments, written to `out`, or what is there already."""
    from coachhook.covariance_file import read_covariance, write_covariance
    from coachhook.second_moment_files import read_second_moments

    loaded, _ = load(model, architecture=architecture)
    if published is None:
        return loaded, read_covariance(out, loaded)
    covariance = read_second_moments(published, loaded, layers)
    write_covariance(covariance, out)
    return loaded, covariance
