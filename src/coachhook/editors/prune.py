"""PRUNE: MEMIT whose total update has its large singular values restrained (Ma et al., ICLR 2025).

The published method restrains once, after the last edit. Here the model answers with the restrained sum after every
step, while editing goes on from the sum itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from coachhook.covariance_file import Covariance
from coachhook.edit_request import EditRequest
from coachhook.editors.base import Update
from coachhook.editors.locate import MemitConfig, MemitSolve


class PruneConfig(MemitConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

    log_base: float = Field(
        math.e, gt=1, description="base of the logarithm that large singular values are put through (paper: α, tuned)"
    )


class Prune(MemitSolve):
    """Answers with W0 + restrain(ΔW), ΔW being the sum of MEMIT's updates: the restrained sum stands in place of ΔW,
    never on top of it.
    """

    config_class = PruneConfig
    paper = "Ma et al., ICLR 2025: Perturbation-Restrained Sequential Model Editing"
    config: PruneConfig

    def __init__(self, model, tokenizer, config: PruneConfig, covariance: Covariance | None):
        super().__init__(model, tokenizer, config, covariance)
        self._bounds = {layer: self._largest_singular_value(layer) for layer in config.layers}
        self._sums: dict[int, Tensor | None] = dict.fromkeys(config.layers)

    def replay(self, update: Update) -> None:
        self.replay_all([update])

    def replay_all(self, updates: Iterable[Update]) -> None:
        """Add all updates, and restrain their sum once."""
        self._unrestrain()
        with self.hooks.gathered():
            for update in updates:
                super().replay(update)
        for hook in self.hooks:
            self._sums[hook.layer] = hook.delta
            if hook.delta is not None:
                hook.delta = restrain(hook.delta, self._bounds[hook.layer], self.config.log_base)

    def reset(self) -> None:
        super().reset()
        self._sums = dict.fromkeys(self.config.layers)

    def _compute(self, requests: Sequence[EditRequest]) -> Update:
        self._unrestrain()
        return super()._compute(requests)

    def _unrestrain(self) -> None:
        for hook in self.hooks:
            hook.delta = self._sums[hook.layer]

    def _largest_singular_value(self, layer: int) -> float:
        weight = self.parts.base_weight(layer).double()
        return torch.linalg.eigvalsh(weight @ weight.T)[-1].sqrt().item()


def restrain(delta: Float[Tensor, "d m"], bound: float, base: float = math.e) -> Float[Tensor, "d m"]:
    """U f(S) Vᵀ of ΔW = U S Vᵀ, with f(s) = log s − log bound + bound where s ≥ bound, else s.

    A ΔW without such singular values comes back as it is. f is the published one; it lets s grow where
    bound < 1 / ln(base) and s is only a little above it.

    Arguments:
        bound: the largest singular value of W0.
        base: of the logarithm.
    """
    if delta.norm() < bound:
        return delta
    exact = delta.double()
    squares, left = torch.linalg.eigh(exact @ exact.T)  # d×d, much smaller than an SVD of d×m
    large = squares >= bound**2
    if not large.any():
        return delta
    left, singular = left[:, large], squares[large].sqrt()
    restrained = torch.log(singular / bound) / math.log(base) + bound
    return (exact + (left * (restrained / singular - 1)) @ (left.T @ exact)).to(delta.dtype)
