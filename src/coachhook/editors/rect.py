"""RECT: MEMIT whose update keeps only the entries that change their weight most, relatively (Gu et al., EMNLP 2024)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor

from coachhook.changes import Change, add_in_order, kept_change
from coachhook.editors.locate import MemitConfig, MemitSolve


class RectConfig(MemitConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

    kept_share: float = Field(0.4, gt=0, le=1, description="share of a layer's entries of Δ that are kept")


class Rect(MemitSolve):
    """MEMIT's Δ, layer by layer, all but the largest |Δ_ij / (W_ij + 1e-8)| set to zero.

    W is the weight that the step finds (W0 + ΔW so far), as the paper takes each edit's change relative to the weight
    before it. Entries go before the next layer is solved, so the layers above make up for what is lost. A step is kept
    as MEMIT's factors and one bit per entry (`kept.<layer>`), or whole (`delta.<layer>`) where that is smaller.
    """

    config_class = RectConfig
    paper = "Gu et al., EMNLP 2024: Model Editing Harms General Abilities of Large Language Models"
    config: RectConfig

    def _step(self, layer: int, keys: Float[Tensor, "m u"], residuals: Float[Tensor, "d u"]) -> dict[str, Tensor]:
        step = super()._step(layer, keys, residuals)
        weight = self.parts.base_weight(layer).float().to(self.hooks[layer].device) + self.hooks[layer].dense()
        change = add_in_order(torch.zeros_like(weight), [kept_change(step)])
        kept = largest_changes(change, weight, self.config.kept_share)
        if "delta" in step:
            return {"delta": torch.where(kept, change, 0.0)}
        return step | {"kept": _pack(kept)}

    def _apply(self, layer: int, step: dict[str, Tensor]) -> None:
        change = kept_change(step)
        self.hooks[layer].add(_masked(change, step["kept"]) if "kept" in step else change)


def largest_changes(change: Float[Tensor, "d m"], weight: Float[Tensor, "d m"], share: float) -> Bool[Tensor, "d m"]:
    """True at the `share` of entries with the largest |Δ_ij / (W_ij + 1e-8)|, at least one."""
    relative = (change / (weight + 1e-8)).abs().flatten()
    kept = torch.zeros_like(relative, dtype=torch.bool)
    kept[relative.topk(max(1, round(share * len(relative)))).indices] = True
    return kept.view_as(change)


def _pack(kept: Bool[Tensor, "d m"]) -> UInt8[Tensor, " bytes"]:
    return torch.from_numpy(np.packbits(kept.cpu().numpy())).to(kept.device)


def _masked(change: Change, packed: UInt8[Tensor, " bytes"]) -> Change:
    def add(block: Float[Tensor, "rows m"], rows: slice) -> None:
        first = rows.start * block.shape[1] // 8  # a whole number: blocks of rows start at multiples of 8
        whole = torch.zeros_like(block)
        change(whole, rows)
        block += torch.where(_unpack(packed[first:], whole), whole, 0.0)

    return add


def _unpack(packed: UInt8[Tensor, " bytes"], like: Float[Tensor, "rows m"]) -> Bool[Tensor, "rows m"]:
    bits = np.unpackbits(packed[: -(-like.numel() // 8)].cpu().numpy(), count=like.numel())
    return torch.from_numpy(bits).to(like.device).bool().view_as(like)
