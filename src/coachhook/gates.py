"""Gates: which tokens a validated hook layer answers for.

Legend: k key, ΔW = W_h − W0, M_t = ‖ΔW k_t‖, z_t = (M_t − mean M) / std M over the real tokens of a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coachhook.low_rank import LowRank


def z_scores(
    change: Float[Tensor, "batch time d"], real: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, "batch time"]:
    """z-score of each token's ‖ΔW k‖ among the real tokens of its sequence (paper, section 3.3).

    The standard deviation is the unbiased one, so z never exceeds (n − 1)/√n for n real tokens, and one token
    alone has no z-score (NaN). Padding gets NaN.

    Arguments:
        change: ΔW k, per token.
        real: True at real tokens; None where all are.
    """
    distance = change.float().norm(dim=-1).double()  # squares of tiny distances would vanish in float32
    if real is None:
        real = torch.ones_like(distance, dtype=torch.bool)
    count = real.sum(-1, keepdim=True)
    mean = torch.where(real, distance, 0.0).sum(-1, keepdim=True) / count
    deviation = torch.where(real, distance - mean, 0.0)
    variance = deviation.square().sum(-1, keepdim=True) / (count - 1)
    return torch.where(real, deviation / variance.sqrt(), torch.nan).float()


class Gate(ABC):
    """Decides token by token; one gate per hook layer."""

    nbytes: int = 0
    """Bytes that deciding takes besides ΔW."""

    @abstractmethod
    def swap(
        self,
        change: Float[Tensor, "batch time d"],
        real: Bool[Tensor, "batch time"] | None = None,
        keys: Float[Tensor, "batch time m"] | None = None,
    ) -> Bool[Tensor, "batch time"] | None:
        """True where W_h answers; None for everywhere."""

    @abstractmethod
    def moved(self, device: torch.device, factors: LowRank | None) -> Gate:
        """The gate for a model on another device, where the ΔW it decides about is kept as `factors`."""

    def answer(
        self,
        change: Callable[[Tensor], Tensor],
        keys: Float[Tensor, "batch time m"],
        real: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time d"], Bool[Tensor, "batch time"] | None]:
        """What W_h adds to W0 k for each token, `change` giving ΔW k, and where it is added, as `swap` says it."""
        changed = change(keys)
        return changed, self.swap(changed, real, keys)


class NoGate(Gate):
    """W_h answers for every token (the paper's ablation without hook layers)."""

    def swap(self, change: Tensor, real: Tensor | None = None, keys: Tensor | None = None) -> None:
        return None

    def moved(self, device: torch.device, factors: LowRank | None) -> NoGate:
        return self

    def __repr__(self) -> str:
        return "NoGate()"


class PaperGate(Gate):
    """The published gate: W_h answers where z ≥ α (CoachHooK, EMNLP 2024, section 3.3).

    Its weaknesses are kept on purpose: it looks at later tokens, is scale-free, cannot fire on prompts under
    7 tokens with α = 2.2, and is silent where it sees one token (decoding with a cache).

    Arguments:
        alpha: α_z, the threshold at the start.
    """

    def __init__(self, alpha: float):
        self.alpha = alpha

    def swap(
        self, change: Tensor, real: Tensor | None = None, keys: Tensor | None = None
    ) -> Bool[Tensor, "batch time"]:
        return z_scores(change, real) >= self.alpha  # NaN compares False: no z-score, no swap

    def tighten(self, change: Float[Tensor, "batch time d"], real: Bool[Tensor, "batch time"]) -> None:
        """α ← min(α, min over prompts of max over tokens of z): each edited prompt can pass. α never rises."""
        highest = z_scores(change, real).nan_to_num(nan=-torch.inf).amax(-1)
        highest = highest[highest > -torch.inf]  # a prompt of one token has no z-score
        if highest.numel():
            self.alpha = min(self.alpha, highest.min().item())

    def moved(self, device: torch.device, factors: LowRank | None) -> PaperGate:
        return self

    def __repr__(self) -> str:
        return f"PaperGate(alpha={self.alpha:.4g})"
