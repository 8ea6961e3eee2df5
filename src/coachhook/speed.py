"""How fast a model of a configuration runs on a device, from a short trial of two of its blocks."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig


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


def measure_speed(config: PretrainedConfig, device: str = "cpu", dtype: str = "auto", seconds: float = 10.0) -> Speed:
    """Time two blocks, the head and a float64 product on `device`, for about `seconds`."""
    raise NotImplementedError
