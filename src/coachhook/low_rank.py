"""A matrix kept as low-rank factors that grow by a few columns at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class LowRank:
    """Σ left rightᵀ (d×m, float32). `grown` gives a new one, so that an earlier one stays what it was."""

    def __init__(self, left: tuple[Tensor, ...] = (), right: tuple[Tensor, ...] = ()):
        self._left, self._right = left, right

    def grown(self, left: Float[Tensor, "d u"], right: Float[Tensor, "m u"]) -> LowRank:
        """This plus left rightᵀ."""
        return LowRank((*self._left, left.float()), (*self._right, right.float()))

    def to(self, device: torch.device) -> LowRank:
        """The same on another device."""
        return LowRank(tuple(part.to(device) for part in self._left), tuple(part.to(device) for part in self._right))

    @property
    def left(self) -> Float[Tensor, "d p"]:
        self._left = _joined(self._left)
        return self._left[0]

    @property
    def right(self) -> Float[Tensor, "m p"]:
        self._right = _joined(self._right)
        return self._right[0]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self._left, *self._right))

    def apply(self, vectors: Float[Tensor, "*tokens m"]) -> Float[Tensor, "*tokens d"]:
        """The matrix times each vector."""
        return (vectors @ self.right) @ self.left.T

    def dense(self) -> Float[Tensor, "d m"]:
        return self.left @ self.right.T


def _joined(parts: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Joined when first used, not batch by batch: loading many steps copies each of them once."""
    return parts if len(parts) == 1 else (torch.cat(parts, 1),)
