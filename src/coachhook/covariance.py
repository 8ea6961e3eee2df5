"""Key covariances C0 = E[k kᵀ] (uncentred) of the edited layers, all from one truncated pass over ordinary text."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.covariance_file import (
    Covariance,
    check_matrices,
    model_digest,
    read_covariance,
    write_covariance,
)
from coachhook.covariance_memory import covariance_memory
from coachhook.needs import size
from coachhook.progress import tell
from coachhook.reading import Reader
from coachhook.second_moment import SecondMoments
from coachhook.solver import CovarianceError
from coachhook.tensor_files import DamagedFileError, read_tensors, write_tensors
from coachhook.tokens import pad, pad_id
from coachhook.tracing import rewrite_inputs
from coachhook.whole_files import alone

__all__ = [
    "Covariance",
    "CovarianceError",
    "check_matrices",
    "compute_covariance",
    "model_digest",
    "read_covariance",
    "unfinished_path",
    "write_covariance",
]

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LOG_LINES = 5.0


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
    document_tokens: int = 8192,
    background: int = 4096,
    seed: int = 0,
    checkpoint_seconds: float = 300.0,
) -> Covariance:
    """Second moment of the rewrite modules' inputs over `texts`, each cut at the context length (MEMIT, section 4.3).

    Keys are multiplied and summed in float64. The forward pass ends at the last of `layers`. Killed at any moment and
    started again with the same arguments, it goes on from the file `unfinished_path(out)` and ends with the same
    bytes; a file of another model, other texts or other settings is not used.

    Arguments:
        out: file to write (safetensors).
        max_tokens: token budget; the pass stops there, inside a document if need be.
        batch_tokens: padded tokens per forward pass; memory grows with it.
        document_tokens: tokens of a document that are read, where the context is longer than that.
        background: how many keys to keep as a uniform sample (reservoir) per layer. A gate set by n of them to a rate f
            keeps to it within a relative √((1 − f)/(n f)), one standard deviation: 11 % for 0.02.
        seed: draws that sample.
        checkpoint_seconds: how often the unfinished sums are stored beside `out`.

    Raises:
        CovarianceError: there is no text.
    """
    parts = ModelParts(model)
    layers = sorted(set(layers))
    longest = min(parts.context_length, document_tokens)
    widths = {layer: parts.width(layer) for layer in layers}
    devices = {layer: parts.device(layer) for layer in layers}
    on_cpu = devices[layers[0]].type == "cpu"
    _announce(covariance_memory(parts, layers, max_tokens, batch_tokens, longest, background, on_cpu))
    moments = SecondMoments(widths, background, max_tokens, seed, devices)
    reader = Reader(tokenizer, texts, longest, max_tokens, batch_tokens)
    digest = model_digest(model, layers)
    identity = {"model": digest, "tokenizer": _vocabulary_digest(tokenizer), "layers": layers, "seed": seed}
    identity |= {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "document_tokens": longest}
    identity["background"] = background
    unfinished = _Unfinished(out and unfinished_path(out), identity, moments, reader, checkpoint_seconds)
    was_training = model.training
    model.eval()
    with unfinished.alone():
        unfinished.restore()
        try:
            for _ in _count(parts, layers, reader, moments, max_tokens, pad_id(tokenizer)):
                unfinished.store_when_due()
        finally:
            model.train(was_training)
        if not moments.tokens:
            raise CovarianceError("texts: there is no text to compute a covariance from")
        logger.info("covariance: %d tokens of at most %d, %d documents", moments.tokens, max_tokens, reader.documents)
        covariance = _result(moments, digest, str(parts.base_weight(layers[0]).dtype).removeprefix("torch."))
        if out is not None:
            write_covariance(covariance, out)
        unfinished.remove()
    return covariance


def unfinished_path(out: str | os.PathLike) -> Path:
    """Where the sums of a covariance that is not finished are kept."""
    return Path(out).with_name(f".{Path(out).name}.unfinished")


def _result(moments: SecondMoments, digest: str, dtype: str) -> Covariance:
    convergence = {layer: tuple(points) for layer, points in moments.convergence.items()}
    return Covariance(moments.matrices(), moments.reservoir.keys(), moments.tokens, digest, convergence, dtype)


def _announce(memory: dict[str, int]) -> None:
    told = ", ".join(f"{name} {size(count)}" for name, count in memory.items())
    logger.info("covariance: will need about %s of memory (%s)", size(sum(memory.values())), told)


def _count(
    parts: ModelParts, layers: Sequence[int], reader: Reader, moments: SecondMoments, max_tokens: int, fill: int
) -> Iterator[None]:
    """Run every batch that is left and count its keys, with a line of progress now and then."""
    told = time.monotonic()
    for ids in reader.batches():
        batch = pad(ids, fill, parts.input_device)
        with rewrite_inputs(parts, layers) as recorded:
            parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        moments.add(recorded, batch.real)
        tell("counting keys, at most", moments.tokens, max_tokens)
        changes = moments.look()
        if changes:
            change = 100 * max(changes.values())
            logger.info("covariance: C0 changed by %.2g %% in the last doubling, to %d tokens", change, moments.tokens)
        if time.monotonic() - told >= _SECONDS_BETWEEN_LOG_LINES:
            told = time.monotonic()
            logger.info("covariance: %d tokens so far", moments.tokens)
        yield


class _Unfinished:
    """The file that a killed job goes on from.

    Arguments:
        path: None: there is none.
        identity: JSON values; a file with others is not used.
        seconds: between two times that it is stored.
    """

    def __init__(self, path: Path | None, identity: dict, moments: SecondMoments, reader: Reader, seconds: float):
        self._path, self._identity, self._moments, self._reader = path, identity, moments, reader
        self._seconds, self._stored = seconds, time.monotonic()

    def alone(self) -> AbstractContextManager:
        """Wait for another process that computes this file: what a killed job has started may live on."""
        return nullcontext() if self._path is None else alone(self._path.with_suffix(".lock"))

    def store_when_due(self) -> None:
        if self._path is None or time.monotonic() - self._stored < self._seconds:
            return
        sums, counted = self._moments.state()
        window, read = self._reader.state()
        metadata = {"identity": self._identity, "counted": counted, "read": read}
        write_tensors(self._path, sums | window, metadata)
        self._stored = time.monotonic()

    def restore(self) -> None:
        """Go on from the file, where there is one of this very job."""
        if self._path is None or not self._path.exists():
            return
        try:
            tensors, metadata = read_tensors(self._path)
        except DamagedFileError as error:
            logger.warning("%s: damaged (%s); starting afresh", self._path, error)
            return
        stored = metadata.get("identity", {})
        others = [name for name, value in self._identity.items() if stored.get(name) != value]
        if others:
            logger.info("%s: begun with another %s; starting afresh", self._path, ", ".join(others))
            return
        if not self._reader.restore(tensors.pop, metadata["read"]):
            logger.info("%s: begun on other texts; starting afresh", self._path)
            return
        self._moments.restore(tensors.pop, metadata["counted"])
        logger.info("covariance: going on from %d tokens, in %s", self._moments.tokens, self._path)

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
