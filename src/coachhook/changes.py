"""Changes of a weight (d×m) by steps, kept small and added a block of rows at a time.

A product's bits depend on how it is split, and a sum's on the order of its terms. Both are always the same here, so
many steps added together, each block while it is in the processor's cache, have the bits of steps made one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Change = Callable[[Float[Tensor, "rows m"], slice], None]
"""Adds, in place, to some rows of a weight what a step changes there; the slice says which rows they are."""

_ROWS = 128  # another number would give steps that were saved before other bits


def row_blocks(rows: int) -> list[slice]:
    """The blocks of rows that changes are added to; all but the last have the same size."""
    return [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]


def dense(change: Float[Tensor, "d m"]) -> Change:
    def add(block: Float[Tensor, "rows m"], rows: slice) -> None:
        block += change[rows]

    return add


def product(left: Float[Tensor, "d u"], right: Float[Tensor, "m u"]) -> Change:
    """left · rightᵀ."""

    def add(block: Float[Tensor, "rows m"], rows: slice) -> None:
        block.addmm_(left[rows], right.T)  # quicker than a product of its own that is then added

    return add


@torch.no_grad()
def add_in_order(weight: Float[Tensor, "d m"], changes: Sequence[Change]) -> Float[Tensor, "d m"]:
    """A new tensor: the float32 `weight` and each change, added in this order."""
    total = weight.clone()
    for rows in row_blocks(len(total)):
        block = total[rows]
        for change in changes:
            change(block, rows)
    return total


def smallest(left: Float[Tensor, "d u"], right: Float[Tensor, "m u"]) -> dict[str, Tensor]:
    """left · rightᵀ as a step keeps it: its factors, or, where a step has many columns, the product (`delta`)."""
    if left.numel() + right.numel() < len(left) * len(right):
        return {"left": left, "right": right}
    return {"delta": left @ right.T}


def kept_change(step: Mapping[str, Tensor]) -> Change:
    """The change that `smallest` kept."""
    return dense(step["delta"]) if "delta" in step else product(step["left"], step["right"])
