"""Second moments as ROME and MEMIT publish them: one .npz file a layer, with Σ k kᵀ in float32 and its token count.

`transformer.h.13.mlp.c_proj_float32_mom2_100000.npz` holds `mom2.mom2` (m×m), `mom2.count`, and `sample_size` (how
many documents, also at the end of the name), which their loader compares with the number it was asked for.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from coachhook.architectures import ModelParts
from coachhook.covariance_file import Covariance, check_matrices, model_digest
from coachhook.solver import CovarianceError
from coachhook.whole_files import whole_file

logger = logging.getLogger(__name__)
_NAME = re.compile(
    r"(?P<module>.+)_float(16|32|64)_(?P<statistics>[a-z0-9-]+(_[a-z]+)*)(_t(\{batch_tokens\}|\d+))?(_\d+)?"
)
_ASYMMETRY = 1e-3


def read_second_moments(
    source: str | os.PathLike | Iterable[str | os.PathLike],
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
) -> Covariance:
    """The covariance that published files hold. They have no background keys.

    Arguments:
        source: a folder of .npz files, or the files.
        model: whose rewrite modules the files' names name; they carry no other identity, so be sure that it is this.
        layers: which to read; all that are there where it is not given.

    Raises:
        CovarianceError: there is no such file, a layer is missing, or a file is damaged, of another shape, not
            symmetric, holds NaN, names a module that the model does not edit, or is the second of a layer.
    """
    paths = sorted(Path(source).glob("*.npz")) if isinstance(source, str | os.PathLike) else [Path(p) for p in source]
    if not paths:
        raise CovarianceError(f"{source}: holds no .npz file; give the folder that the second moments are in")
    parts = ModelParts(model)
    by_layer = _by_layer(paths, parts)
    missing = sorted(set(layers or ()) - set(by_layer))
    if missing:
        raise CovarianceError(f"{source}: holds layers {sorted(by_layer)}, not {missing}; get their files too")
    matrices, counts = {}, {}
    for layer in sorted(layers or by_layer):
        matrices[layer], counts[layer] = _read(by_layer[layer], parts.width(layer))
        check_matrices({layer: matrices[layer]}, str(by_layer[layer]))
    if len(set(counts.values())) > 1:
        logger.info("the layers were counted over different numbers of tokens (%s); noting the smallest", counts)
    background = {layer: torch.zeros(0, len(matrix)) for layer, matrix in matrices.items()}
    return Covariance(matrices, background, min(counts.values()), model_digest(model, list(matrices)))


def write_second_moments(
    covariance: Covariance, folder: str | os.PathLike, model: PreTrainedModel, sample_size: int = 100_000
) -> list[Path]:
    """Write one file a layer, as ROME's and MEMIT's `layer_stats` finds them in `<model>/<data set>_stats`.

    Arguments:
        sample_size: what their `mom2_n_samples` asks for. They count documents; here it is only the files' label.

    Raises:
        CovarianceError: the covariance is not this model's.
    """
    if model_digest(model, covariance.layers) != covariance.model_digest:
        raise CovarianceError("covariance: it was computed on another model; compute it on this one")
    parts, folder = ModelParts(model), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for layer, matrix in covariance.matrices.items():
        path = folder / f"{_module_name(parts, layer)}_float32_mom2_{sample_size}.npz"
        arrays = {
            "mom2.constructor": np.array("util.runningstats.SecondMoment()"),
            "mom2.count": np.array(covariance.tokens),
            "mom2.mom2": (matrix * covariance.tokens).float().numpy(),
            "sample_size": np.array(sample_size),
        }
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
        written.append(path)
    return written


def _by_layer(paths: Sequence[Path], parts: ModelParts) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in paths:
        layer = _layer(path, parts)
        if layer in found:
            raise CovarianceError(f"{path}: is of layer {layer}, as {found[layer].name} is; give one of them")
        found[layer] = path
    return found


def _layer(path: Path, parts: ModelParts) -> int:
    """The layer that a file's name tells."""
    named = _NAME.fullmatch(path.stem)
    if named is None or "mom2" not in named["statistics"].split("-"):
        raise CovarianceError(f"{path}: its name is not MODULE_float32_mom2_SAMPLES.npz; give second moments only")
    modules = {_module_name(parts, layer): layer for layer in range(len(parts.blocks))}
    if named["module"] not in modules:
        first = next(iter(modules))
        problem = f"is of {named['module']}, which this model does not edit (it edits {first} and the like)"
        raise CovarianceError(f"{path}: {problem}; give this model's second moments only")
    return modules[named["module"]]


def _module_name(parts: ModelParts, layer: int) -> str:
    wanted = parts.rewrite_module(layer)
    return next(name for name, module in parts.model.named_modules() if module is wanted)


def _read(path: Path, width: int) -> tuple[Float[Tensor, "m m"], int]:
    """C0 in float64, and how many tokens were counted."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            total, count = torch.from_numpy(file["mom2.mom2"]), int(file["mom2.count"])
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CovarianceError(f"{path}: no second moment can be read from it ({reason}); get it again") from None
    if tuple(total.shape) != (width, width):
        shape = "×".join(map(str, total.shape))
        raise CovarianceError(f"{path}: is {shape}, this model's keys are {width} wide; give this model's file")
    if count <= 0:
        raise CovarianceError(f"{path}: counts {count} tokens; get it again")
    matrix = total.double().div_(count)
    if (matrix - matrix.T).norm() > _ASYMMETRY * matrix.norm():
        raise CovarianceError(f"{path}: is not symmetric, so it is no second moment; get it again")
    return matrix, count
