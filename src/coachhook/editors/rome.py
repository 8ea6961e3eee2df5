"""ROME: one request at a time, one layer, a rank-one update (Meng et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from coachhook.changes import Change
from coachhook.edit_request import EditRequest
from coachhook.editors.base import Update
from coachhook.editors.locate import LocateConfig, LocateThenEdit
from coachhook.keys import KeyPrompts, LayerSweep
from coachhook.solver import RecursiveLeastSquares
from coachhook.targets import TargetSettings


class RomeConfig(LocateConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

    layers: tuple[int, ...] = Field(min_length=1, max_length=1, description="the edited layer, as a list of one")
    clamp: float = Field(4.0, gt=0, description="‖δ‖ is at most this times ‖v‖, v the rewrite module's output")
    weight_decay: float = Field(0.5, ge=0, description="weight of ‖δ‖/‖v‖²")


class Rome(LocateThenEdit):
    """ΔW += (v − W k) (C0⁻¹k)ᵀ / ((C0⁻¹k)ᵀ k), W = W0 + ΔW so far; each request sees all before it, in its batch too.

    v − W k is z − h: a block's output is its rewrite module's output plus terms that W has no part in, so what is
    added to one is added to the other. The key is that of all methods here (`KeyPrompts`), in the numerator and the
    denominator alike, as in the paper; the released code divides by the plain prompt's key.
    """

    config_class = RomeConfig
    paper = "Meng et al., NeurIPS 2022: Locating and Editing Factual Associations in GPT"
    config: RomeConfig

    def _prepare(self) -> None:
        (layer,) = self.config.layers
        self._preserved = RecursiveLeastSquares(self._matrix(layer), 1.0)

    def _compute(self, requests: Sequence[EditRequest]) -> Update:
        steps = []
        for request in requests:
            steps.append(super()._compute([request]).tensors)
        return Update({name: torch.cat([step[name] for step in steps], 1) for name in steps[0]})

    def _target_settings(self, requests: Sequence[EditRequest]) -> TargetSettings:
        """The settings for one request, measured by ‖v‖ instead of ‖h‖, which is many times as large.

        Where a norm stands behind the module, v is what reaches the block's output of it: N(x) − N(x − v).
        """
        (layer,) = self.config.layers
        prompts = KeyPrompts.encode(self.tokenizer, requests, (), self.parts.input_device)
        with torch.no_grad():
            sweep = LayerSweep(self.parts, self.hooks, prompts, self.config.layers)
            module = self.parts.rewrite_module(layer)
            value = module(sweep.keys(layer)[None].to(module.weight.dtype)).float()
            if layer in self._norms:
                norm, given = self._norms[layer], sweep.given(self._norms[layer], layer)
                with_and_without = torch.cat([given, given - value[0]]).to(module.weight.dtype)
                value = norm(with_and_without).float().diff(dim=0)
            ratio = (value.norm() / sweep.hidden(layer).norm()).item()
        settings = self.config.targets
        return replace(settings, clamp=settings.clamp * ratio, weight_decay=settings.weight_decay / ratio**2)

    def _solve(self, layer: int, keys: Float[Tensor, "m 1"]) -> Float[Tensor, "m 1"]:
        whitened = self._preserved.solve(keys)
        return whitened / (whitened.T @ keys.double())

    def _apply(self, layer: int, step: dict[str, Tensor]) -> None:
        # One by one also when a whole batch is replayed, for sums in another order have other bits.
        for left, right in zip(step["left"].T, step["right"].T, strict=True):
            self.hooks[layer].add(_outer(left, right))


def _outer(left: Float[Tensor, " d"], right: Float[Tensor, " m"]) -> Change:
    def add(block: Float[Tensor, "rows m"], rows: slice) -> None:
        block += torch.outer(left[rows], right)

    return add
