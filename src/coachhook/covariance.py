"""Key covariances C0 = E[k kᵀ] (uncentred) of the edited layers, all from one truncated pass over ordinary text."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.solver import CovarianceError
from coachhook.tokens import batches_by_length, pad, pad_id
from coachhook.tracing import rewrite_inputs

logger = logging.getLogger(__name__)
_FORMAT = 1


@dataclass(frozen=True)
class Covariance:
    """Covariances of one model.

    Attributes:
        matrices: C0 (m×m, float64) per layer.
        background: a sample of keys (n×m, float32) per layer.
        tokens: how many tokens were counted.
        model_digest: identity of the model's edited layers, see `model_digest`.
    """

    matrices: dict[int, Float[Tensor, "m m"]]
    background: dict[int, Float[Tensor, "n m"]]
    tokens: int
    model_digest: str

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.matrices))


def model_digest(model: PreTrainedModel, layers: Sequence[int]) -> str:
    """SHA-256 of the rewrite modules' weights of `layers`: tells models with the same shape apart."""
    parts = ModelParts(model)
    digest = hashlib.sha256(model.config.model_type.encode())
    for layer in sorted(layers):
        weight = parts.base_weight(layer).float().cpu().contiguous()
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def compute_covariance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    layers: Sequence[int],
    out: str | os.PathLike | None = None,
    *,
    max_tokens: int = 1_000_000,
    batch_tokens: int = 8192,
    background: int = 1024,
    seed: int = 0,
) -> Covariance:
    """Second moment of the rewrite modules' inputs over `texts`, each cut at the context length (MEMIT, section 4.3).

    Keys are multiplied and summed in float64. The forward pass ends at the last of `layers`.

    Arguments:
        out: file to write (safetensors).
        max_tokens: token budget; the pass stops there, inside a document if need be.
        batch_tokens: padded tokens per forward pass.
        background: how many keys to keep as a uniform sample (reservoir) per layer.
        seed: draws that sample.

    Raises:
        CovarianceError: there is no text.
    """
    parts = ModelParts(model)
    layers = sorted(set(layers))
    device = parts.input_device
    sums = {layer: _zeros(parts.width(layer), parts.device(layer)) for layer in layers}
    reservoir = _Reservoir(background, seed)
    was_training = model.training
    model.eval()
    for ids in _batches(tokenizer, texts, parts.context_length, max_tokens, batch_tokens):
        batch = pad(ids, pad_id(tokenizer), device)
        with rewrite_inputs(parts, layers) as recorded:
            parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        keys = {layer: recorded[layer][batch.real.to(recorded[layer].device)] for layer in layers}
        for layer, rows in keys.items():
            sums[layer] += rows.double().T @ rows.double()
        reservoir.offer(keys)
        logger.info("covariance: %d tokens of at most %d", reservoir.seen, max_tokens)
    model.train(was_training)
    if not reservoir.seen:
        raise CovarianceError("texts: there is no text to compute a covariance from")
    covariance = Covariance(
        {layer: (total / reservoir.seen).cpu() for layer, total in sums.items()},
        reservoir.keys(),
        reservoir.seen,
        model_digest(model, layers),
    )
    if out is not None:
        write_covariance(covariance, out)
    return covariance


def _zeros(width: int, device: torch.device) -> Float[Tensor, "m m"]:
    return torch.zeros((width, width), dtype=torch.float64, device=device)


def write_covariance(covariance: Covariance, path: str | os.PathLike) -> None:
    """Write one safetensors file: matrices in float64, background keys in float32, count and identity as metadata."""
    tensors = {f"covariance.{layer}": matrix for layer, matrix in covariance.matrices.items()}
    tensors |= {f"background.{layer}": keys for layer, keys in covariance.background.items()}
    metadata = {
        "format": str(_FORMAT),
        "layers": json.dumps(covariance.layers),
        "tokens": str(covariance.tokens),
        "precision": "float64",
        "model_digest": covariance.model_digest,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # One key, as safetensors writes several in random order, and the same covariance should be the same bytes.
    packed = {"coachhook": json.dumps(metadata, sort_keys=True)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, packed)
    os.replace(temporary, path)


def read_covariance(
    path: str | os.PathLike, model: PreTrainedModel | None = None, layers: Sequence[int] | None = None
) -> Covariance:
    """Read a covariance file and check it before any work.

    Arguments:
        model: refuse a covariance of another model.
        layers: refuse one that lacks some of these layers.

    Raises:
        CovarianceError: the file is damaged, holds NaN, or belongs to another model or other layers.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("coachhook", "{}"))
            if metadata.get("format") != str(_FORMAT):
                raise CovarianceError(f"{path}: not a covariance file of format {_FORMAT}; compute it again")
            stored = json.loads(metadata["layers"])
            matrices = {layer: file.get_tensor(f"covariance.{layer}") for layer in stored}
            background = {layer: file.get_tensor(f"background.{layer}") for layer in stored}
    except (SafetensorError, OSError, KeyError) as error:
        raise CovarianceError(f"{path}: cannot be read ({error}); compute it again") from None
    covariance = Covariance(matrices, background, int(metadata["tokens"]), metadata["model_digest"])
    missing = sorted(set(layers or ()) - set(stored))
    if missing:
        raise CovarianceError(f"{path}: holds layers {stored}, not {missing}; compute it for layers {sorted(layers)}")
    if model is not None and model_digest(model, stored) != covariance.model_digest:
        raise CovarianceError(f"{path}: was computed on another model; compute it on this one")
    check_matrices(matrices, str(path))
    return covariance


def check_matrices(matrices: Mapping[int, Tensor], name: str = "covariance") -> None:
    """Refuse matrices with NaN or infinite values.

    Raises:
        CovarianceError: names the layer.
    """
    for layer, matrix in matrices.items():
        if not torch.isfinite(matrix).all():
            raise CovarianceError(f"{name}: layer {layer} holds NaN or infinite values; compute it again")


def _batches(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], context: int, budget: int, batch_tokens: int
) -> Iterator[list[list[int]]]:
    """Token ids of documents, cut at the context length and the budget, in batches of similar length."""
    pending: list[list[int]] = []
    left = budget
    for text in texts:
        ids = tokenizer(text)["input_ids"][: min(context, left)]
        if not ids:
            continue
        pending.append(ids)
        left -= len(ids)
        # A window of 16 batches is sorted by length, so padding stays small while texts may be a stream.
        if sum(map(len, pending)) >= 16 * batch_tokens or left <= 0:
            yield from _sorted_batches(pending, batch_tokens)
            pending = []
        if left <= 0:
            return
    if pending:
        yield from _sorted_batches(pending, batch_tokens)


def _sorted_batches(documents: list[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    for group in batches_by_length([len(ids) for ids in documents], batch_tokens):
        yield [documents[index] for index in group]


class _Reservoir:
    """A uniform sample of tokens, the same tokens at every layer (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int):
        self._size, self._generator = size, torch.Generator().manual_seed(seed)
        self._kept: dict[int, Tensor] = {}
        self.seen = 0

    def offer(self, keys: Mapping[int, Float[Tensor, "tokens m"]]) -> None:
        count = len(next(iter(keys.values())))
        order = torch.arange(self.seen, self.seen + count)
        slots = (torch.rand(count, generator=self._generator, dtype=torch.float64) * (order + 1)).long()
        slots = torch.where(order < self._size, order, slots)
        chosen = (slots < self._size).nonzero()[:, 0]
        # A slot drawn twice in one batch keeps the later token, as one by one would.
        last = {int(slots[index]): int(index) for index in chosen}
        for layer, rows in keys.items():
            kept = self._kept.setdefault(layer, torch.zeros(self._size, rows.shape[1]))
            kept[list(last)] = rows[list(last.values())].float().cpu()
        self.seen += count

    def keys(self) -> dict[int, Float[Tensor, "n m"]]:
        return {layer: kept[: min(self.seen, self._size)].clone() for layer, kept in self._kept.items()}
