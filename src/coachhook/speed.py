"""How fast a model of a configuration runs on a device, from a trial of some seconds with two of its blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from coachhook.model_shape import Model, read_config, shallow_model, weights_dtype

_BLOCKS = 2
_TOKENS = (64, 256, 1024)
_LENGTH = 64  # tokens of a row: any context holds them
_PRODUCT_WIDTH = 1024


@dataclass(frozen=True)
class Speed:
    """Seconds of the three things that jobs spend their time on.

    Attributes:
        block: per token and block, one forward pass.
        head: per token, hidden state to logits.
        product: per multiply-add of a float64 matrix product.
    """

    block: float
    head: float
    product: float


@torch.no_grad()
def measure_speed(model: Model, device: str = "cpu", dtype: str = "auto", seconds: float = 10.0) -> Speed:
    """Time two blocks of the model, its head and a float64 product on `device`, in about `seconds`.

    Arguments:
        model: a directory or hub id (only its configuration is read), a configuration, or a loaded model.
        dtype: "float32", "float16", "bfloat16", or "auto": as the model was saved.
    """
    config = read_config(model)
    shallow = shallow_model(config, _BLOCKS, device, weights_dtype(config, dtype))
    head = shallow.get_output_embeddings()

    def run_blocks(tokens: int) -> None:
        ids = torch.zeros((-(-tokens // _LENGTH), min(tokens, _LENGTH)), dtype=torch.long, device=device)
        shallow.base_model(input_ids=ids, use_cache=False)

    def run_head(tokens: int) -> None:
        head(torch.zeros((tokens, head.weight.shape[1]), dtype=head.weight.dtype, device=device))

    def run_product(tokens: int) -> None:
        keys = torch.ones((tokens, _PRODUCT_WIDTH), dtype=torch.float64, device=device)
        keys.T @ keys

    share = seconds / 3
    return Speed(
        _seconds_per_token(run_blocks, device, share) / _BLOCKS,
        _seconds_per_token(run_head, device, share),
        _seconds_per_token(run_product, device, share) / _PRODUCT_WIDTH**2,
    )


def _seconds_per_token(run: Callable[[int], None], device: str, seconds: float) -> float:
    """Best time per token of ever larger batches, as long as the next one is likely to end within `seconds`."""
    started, best = time.perf_counter(), float("inf")
    run(_TOKENS[0])  # what is done once: loading kernels, starting threads
    for tokens in _TOKENS:
        _wait(device)
        before = time.perf_counter()
        run(tokens)
        _wait(device)
        now = time.perf_counter()
        best = min(best, (now - before) / tokens)
        if now - started + 4 * (now - before) > seconds:
            break
    return best


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
