"""The leverage gate: W_h answers where the least-squares solution knows a key from edits rather than from the prior.

Legend: A0 = λC0, P (m×p) all edited keys, A = A0 + P Pᵀ, V (m×p) with A⁻¹ = A0⁻¹ − V Vᵀ; the leverage of a key k is
ℓ(k) = 1 − kᵀA⁻¹k / kᵀA0⁻¹k = ‖Vᵀk‖² / kᵀA0⁻¹k, between 0 and 1; S (r×m) a sketch: ‖S k‖² ≈ kᵀA0⁻¹k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import BFloat16, Bool, Float
from torch import Tensor

from coachhook.gates import Gate
from coachhook.key_retrieval import KeyRetrieval
from coachhook.low_rank import LowRank
from coachhook.solver import RecursiveLeastSquares

_ROWS_AT_ONCE = 512


def prior_sketch(solver: RecursiveLeastSquares, width: int, rows: int, seed: int) -> BFloat16[Tensor, "r m"]:
    """S, random and orthogonal: ‖S k‖² is kᵀA0⁻¹k with a relative error of √(2/r · (1 − r/m)) (Johnson–Lindenstrauss).

    No few directions carry kᵀA0⁻¹k, as A0⁻¹ whitens ordinary keys; so a sketch is what is both small and faithful to
    all keys alike. Its rounding to bfloat16 adds less than 1 %. With r ≥ m it is a square root of A0⁻¹.

    Arguments:
        width: m.
        rows: r.
        seed: of the directions.
    """
    if rows >= width:
        directions = torch.eye(width, dtype=torch.float64, device=solver.device)
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(width, rows, generator=generator, dtype=torch.float64)
        directions = torch.linalg.qr(drawn.to(solver.device))[0] * math.sqrt(width / rows)
    return solver.prior_root(directions).T.to(torch.bfloat16).contiguous()


@dataclass(frozen=True, eq=False)
class LeverageGate(Gate):
    """W_h answers where ℓ(k) ≥ τ.

    It looks at one token alone: padding, other prompts of the batch, later tokens and a cache change nothing.

    Attributes:
        threshold: τ; before any edit no token reaches it.
        factors: ΔW, whose right factor is V; None before any edit.
        sketch: S.
        retrieval: what W_h answers for, where that is not the token's own key.
    """

    threshold: float = math.inf
    factors: LowRank | None = None
    sketch: Float[Tensor, "r m"] | None = None
    retrieval: KeyRetrieval | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.sketch, self.retrieval) if part is not None)

    def grown(self, factors: LowRank, sketch: Tensor | None = None, rows: Tensor | None = None) -> LeverageGate:
        """The gate once a batch is written; the first one brings the sketch. τ stays until it is set anew.

        `rows` are the batch's, for the retrieval.
        """
        sketch = self.sketch if sketch is None else sketch.float()
        retrieval = self.retrieval if rows is None else self.retrieval.grown(rows)
        return replace(self, factors=factors, sketch=sketch, retrieval=retrieval)

    def moved(self, device: torch.device, factors: LowRank | None) -> LeverageGate:
        """The gate on another device, where `factors` are already."""
        sketch, retrieval = (None if part is None else part.to(device) for part in (self.sketch, self.retrieval))
        return replace(self, factors=factors, sketch=sketch, retrieval=retrieval)

    def prior(self, keys: Float[Tensor, "*tokens m"]) -> Float[Tensor, " *tokens"]:
        """kᵀA0⁻¹k, by the sketch."""
        return (keys.float() @ self.sketch.T).square().sum(-1)

    def leverage(self, keys: Float[Tensor, "*tokens m"]) -> Float[Tensor, " *tokens"]:
        """ℓ(k) of every token."""
        return (keys.float() @ self.factors.right).square().sum(-1) / self.prior(keys)

    def swap(
        self, change: Tensor, real: Tensor | None = None, keys: Float[Tensor, "batch time m"] | None = None
    ) -> Bool[Tensor, "batch time"]:
        return self.leverage(keys) >= self.threshold  # a key of zeros has none (NaN), and is not swapped

    def answer(
        self,
        change: Callable[[Tensor], Tensor],
        keys: Float[Tensor, "batch time m"],
        real: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time d"], Bool[Tensor, "batch time"]]:
        coordinates, prior = keys.float() @ self.factors.right, self.prior(keys)
        swap = coordinates.square().sum(-1) / prior >= self.threshold
        if self.retrieval is not None:
            coordinates = self.retrieval.retrieved(coordinates, prior)
        return coordinates @ self.factors.left.T, swap

    def __repr__(self) -> str:
        return f"LeverageGate(threshold={self.threshold:.4g})"


def background_quantile(scores: Float[Tensor, " n"], rate: float) -> float:
    """The threshold that a share `rate` of background tokens' scores reaches, or fewer."""
    return torch.quantile(scores, 1 - rate, interpolation="higher").item()


class Calibration:
    """Sets the τ of one layer: the larger of a background quantile of ℓ and a fraction of the smallest edited ℓ.

    Arguments:
        background: keys (n×m) of ordinary text.
        false_positive_rate: share of such keys that may be swapped; None: only the edited keys count.
        edited_fraction: of the smallest ℓ that the subject of any edited prompt had when its batch was written.
    """

    def __init__(self, background: Float[Tensor, "n m"], false_positive_rate: float | None, edited_fraction: float):
        self._background, self._rate, self._fraction = background.float(), false_positive_rate, edited_fraction
        self.forget()

    def forget(self) -> None:
        self.smallest = math.inf  # ℓ of edited keys
        self._prior: Tensor | None = None
        self._known = torch.zeros(len(self._background), dtype=torch.float64, device=self._background.device)

    def absorb(self, gate: LeverageGate, factor: Float[Tensor, "m u"], smallest: float) -> None:
        """Note a batch that `gate` has grown by; `factor` is its part of V, `smallest` what `smallest_with` gave."""
        self.smallest = smallest
        if self._prior is None:  # the same sketch throughout
            self._prior = self._by_rows(gate.moved(self._background.device, None).prior)
        self._known = self._known + self._energy(factor)

    def smallest_with(self, gate: LeverageGate, keys: Float[Tensor, "u m"]) -> float:
        """The smallest edited ℓ once a batch is written; its keys as its prompts have them."""
        return min(self.smallest, gate.leverage(keys).min().item())

    def threshold(self, gate: LeverageGate, factor: Float[Tensor, "m u"], smallest: float) -> float:
        """τ for a batch that `gate` has grown by and `absorb` has not noted yet."""
        edited = self._fraction * smallest
        if self._rate is None:
            return edited
        prior = self._by_rows(gate.prior) if self._prior is None else self._prior
        leverage = ((self._known + self._energy(factor)) / prior).nan_to_num(nan=0.0)
        return max(edited, background_quantile(leverage, self._rate))

    def _energy(self, factor: Float[Tensor, "m u"]) -> Float[Tensor, " n"]:
        factor = factor.to(self._background)
        return self._by_rows(lambda keys: (keys @ factor).square().sum(-1))

    def _by_rows(self, measure) -> Float[Tensor, " n"]:
        parts = [measure(rows).double() for rows in self._background.split(_ROWS_AT_ONCE)]
        return torch.cat(parts) if parts else self._known
