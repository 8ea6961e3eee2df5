"""Side memories of WISE (Wang et al., NeurIPS 2024): what separates them from other text, their merge, their router.

Legend: W' = W0 + ΔW a side memory (d×m), k input of the rewrite module; the activation of a token is ‖ΔW k‖, that of a
text the largest of its tokens', both in the units of the module's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Margins = tuple[float, float, float]


@dataclass
class SideMemory:
    """Attributes: ΔW, and the least activation that any of its edits ended with."""

    delta: Float[Tensor, "d m"]
    activation: float

    def move(self, device: torch.device) -> None:
        """Keep ΔW on `device`."""
        if self.delta.device != device:
            self.delta = self.delta.to(device)


def margin_loss(
    inside: Float[Tensor, " edits"], outside: Float[Tensor, " texts"], margins: Margins
) -> Float[Tensor, ""]:
    """[outside − a]₊ + [b − inside]₊ + [g − (inside − outside)]₊, each a mean over its violations.

    The paper's margin loss; the released code takes the same means.

    Arguments:
        inside, outside: activations of edits and of unrelated texts; the last term takes every pair.
    """
    below, above, apart = margins
    terms = (outside - below, above - inside, apart - (inside[:, None] - outside))
    return sum(term.clamp_min(0).sum() / (term > 0).sum().clamp_min(1) for term in terms)


def ties_merge(
    deltas: Sequence[Float[Tensor, "d m"]], weights: Sequence[float], density: float
) -> Float[Tensor, "d m"]:
    """TIES (Yadav et al., NeurIPS 2023): trim each ΔW to its largest elements, elect a sign, average who agrees.

    Arguments:
        weights: of each ΔW, in the election and in the mean.
        density: share of elements kept by the trimming.
    """
    stacked = torch.stack([largest_elements(delta, density) for delta in deltas])
    weighted = stacked * stacked.new_tensor(weights)[:, None, None]
    agree = (stacked != 0) & (stacked.sign() == weighted.sum(0).sign())
    share = (agree * stacked.new_tensor(weights)[:, None, None]).sum(0)
    return (weighted * agree).sum(0) / torch.where(share > 0, share, 1)


def largest_elements(delta: Float[Tensor, "d m"], density: float) -> Float[Tensor, "d m"]:
    """The share `density` of the elements that is largest by size; zeros for the others."""
    size = delta.abs()
    dropped = size.numel() - max(1, int(density * size.numel()))
    return delta if not dropped else torch.where(size >= size.flatten().kthvalue(dropped + 1).values, delta, 0)


def routed(
    activations: Float[Tensor, "memories batch time"], thresholds: Float[Tensor, " memories"]
) -> Float[Tensor, "memories batch time"]:
    """One where a side memory answers: of those at or above their threshold the most active; zero elsewhere."""
    above = torch.where(activations >= thresholds[:, None, None], activations, -1.0)
    best = above.max(0)
    chosen = torch.nn.functional.one_hot(best.indices, len(thresholds)).movedim(-1, 0)
    return (chosen * (best.values >= 0)).to(activations)
