"""Tensors with JSON metadata as one safetensors file that knows its own digest: what is cut short or damaged shows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from coachhook.whole_files import whole_file


class DamagedFileError(ValueError):
    """The file cannot be read, or does not hold what was written; the text gives the reason in a few words."""


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping) -> None:
    """Write the file, whole or not at all; the same content is the same bytes."""
    tensors = _plain(tensors)
    with whole_file(path) as temporary:
        save_file(tensors, temporary, _packed(tensors, metadata))


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata; a file of an earlier version, which has no digest, is read as it is.

    Raises:
        DamagedFileError: it is no such file, was cut short, or is not what was written.
        OSError: it is not there, or may not be read.
    """
    with open(path, "rb"):  # what the system has to say of it in its own words
        pass
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("coachhook", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(str(error)) from None
    digest = metadata.pop("digest", None)
    if digest is not None and digest != _digest(tensors, metadata):
        raise DamagedFileError("its content is not what its digest says")
    return tensors, metadata


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _packed(tensors: Mapping[str, Tensor], metadata: Mapping) -> dict[str, str]:
    metadata = json.loads(json.dumps(metadata))  # as it will be read
    # One key, as safetensors writes several in random order.
    return {"coachhook": json.dumps(metadata | {"digest": _digest(tensors, metadata)}, sort_keys=True)}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
