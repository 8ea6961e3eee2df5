"""The file of key covariances C0 = E[k kᵀ] (uncentred), and the checks before any of them is used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from coachhook.architectures import ModelParts
from coachhook.solver import CovarianceError
from coachhook.tensor_files import DamagedFileError, read_tensors, write_tensors
from coachhook.versions import package_versions

_FORMAT = 1
_SAMPLE = 4096  # elements of each tensor
_COMPUTING = ("numpy", "safetensors", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Covariance:
    """Covariances of one model.

    Attributes:
        matrices: C0 (m×m, float64) per layer.
        background: a sample of keys (n×m, float32) per layer; empty or absent where the covariance was imported.
        tokens: how many tokens were counted.
        model_digest: identity of the model's edited layers, see `model_digest`.
        convergence: per layer, tokens and ‖C0 − C0 before‖ / ‖C0‖ (Frobenius), as the tokens doubled.
        dtype: of the rewrite modules' weights that it was computed with.
    """

    matrices: dict[int, Float[Tensor, "m m"]]
    background: dict[int, Float[Tensor, "n m"]]
    tokens: int
    model_digest: str
    convergence: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    dtype: str = "float32"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.matrices))

    def sample_digest(self, layers: Sequence[int]) -> str:
        """Of some elements of what is held of these layers: tells one covariance from another in milliseconds."""
        digest = hashlib.sha256()
        for layer in sorted(layers):
            for held in (self.matrices.get(layer), self.background.get(layer)):
                if held is not None:
                    flat = held.detach().flatten()
                    sample = flat[:: max(1, flat.numel() // _SAMPLE)].double().cpu().contiguous()
                    digest.update(repr(tuple(held.shape)).encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]


def model_digest(model: PreTrainedModel, layers: Sequence[int], dtype: torch.dtype | None = None) -> str:
    """SHA-256 of the rewrite modules' weights of `layers`: tells models with the same shape apart.

    Arguments:
        dtype: of the weights as rounded to it.
    """
    parts = ModelParts(model)
    digest = hashlib.sha256(model.config.model_type.encode())
    for layer in sorted(layers):
        weight = parts.base_weight(layer)
        weight = (weight if dtype is None else weight.to(dtype)).float().cpu().contiguous()
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def write_covariance(covariance: Covariance, path: str | os.PathLike) -> None:
    """Write one safetensors file: matrices in float64, background keys in float32, the rest as metadata."""
    tensors = {f"covariance.{layer}": matrix for layer, matrix in covariance.matrices.items()}
    tensors |= {f"background.{layer}": keys for layer, keys in covariance.background.items()}
    metadata = {
        "format": str(_FORMAT),
        "layers": json.dumps(covariance.layers),
        "tokens": str(covariance.tokens),
        "precision": "float64",
        "model_digest": covariance.model_digest,
        "convergence": {str(layer): points for layer, points in covariance.convergence.items()},
        "versions": package_versions(_COMPUTING),
    }
    if covariance.dtype != "float32":
        metadata["dtype"] = covariance.dtype
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, metadata)


def read_covariance(
    path: str | os.PathLike, model: PreTrainedModel | None = None, layers: Sequence[int] | None = None
) -> Covariance:
    """Read a covariance file and check it before any work.

    Arguments:
        model: refuse a covariance of another model; one of the same model in a coarser dtype is taken.
        layers: refuse one that lacks some of these layers.

    Raises:
        CovarianceError: the file is damaged, holds NaN, or belongs to another model or other layers.
    """
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != str(_FORMAT):
            raise CovarianceError(f"{path}: not a covariance file of format {_FORMAT}; compute it again")
        stored = json.loads(metadata["layers"])
        matrices = {layer: tensors[f"covariance.{layer}"] for layer in stored}
        background = {layer: tensors[name] for layer in stored if (name := f"background.{layer}") in tensors}
    except (DamagedFileError, OSError, KeyError) as error:
        raise CovarianceError(f"{path}: cannot be read ({error}); compute it again") from None
    convergence = {
        int(layer): tuple((tokens, change) for tokens, change in points)
        for layer, points in metadata.get("convergence", {}).items()  # older files have none
    }
    digest, dtype = metadata["model_digest"], metadata.get("dtype", "float32")
    covariance = Covariance(matrices, background, int(metadata["tokens"]), digest, convergence, dtype)
    missing = sorted(set(layers or ()) - set(stored))
    if missing:
        raise CovarianceError(f"{path}: holds layers {stored}, not {missing}; compute it for layers {sorted(layers)}")
    if model is not None and not _is_of(model, covariance):
        raise CovarianceError(f"{path}: was computed on another model; compute it on this one")
    check_matrices(matrices, str(path))
    return covariance


def _is_of(model: PreTrainedModel, covariance: Covariance) -> bool:
    weights = {ModelParts(model).base_weight(layer).dtype for layer in covariance.layers}
    dtype = getattr(torch, covariance.dtype)
    coarser = dtype.itemsize < min(own.itemsize for own in weights)
    return model_digest(model, covariance.layers, dtype if coarser else None) == covariance.model_digest


def load_covariance(
    covariance: str | os.PathLike | Mapping[int, Tensor] | Covariance | None,
    model: PreTrainedModel,
    layers: Sequence[int] | None,
) -> Covariance | None:
    """What a user gives as a covariance: a file, read and checked, or the matrices themselves; None for none.

    Raises:
        CovarianceError: see `read_covariance` and `check_matrices`.
    """
    if covariance is None or isinstance(covariance, Covariance):
        return covariance
    if isinstance(covariance, Mapping):
        check_matrices(covariance)
        return Covariance(dict(covariance), {}, 0, "")
    named = layers if isinstance(layers, Sequence) else None  # what is no list is refused by the configuration
    return read_covariance(covariance, model, named)


def check_matrices(matrices: Mapping[int, Tensor], name: str = "covariance") -> None:
    """Refuse matrices with NaN or infinite values.

    Raises:
        CovarianceError: names the layer.
    """
    for layer, matrix in matrices.items():
        if not torch.isfinite(matrix).all():
            raise CovarianceError(f"{name}: layer {layer} holds NaN or infinite values; compute it again")
