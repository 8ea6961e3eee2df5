"""Retrieval: W_h answers for the edited keys that a token's key resembles, not for that key itself.

Legend: A0 = λC0, P (m×p) all edited keys p_i, V (m×p) with A⁻¹ = A0⁻¹ − V Vᵀ, c = Vᵀk the coordinates of a key k;
C (p×p) lower triangular with C Cᵀ = I + PᵀA0⁻¹P, so that A0⁻¹P = V Cᵀ and VᵀP = Cᵀ − C⁻¹;
cos_i(k) = p_iᵀA0⁻¹k / √(p_iᵀA0⁻¹p_i · kᵀA0⁻¹k); β the sharpness.

The subject of a paraphrase has a key near that of its edit, and what lies between them points to many other edits a
little. ΔW k is linear, so it adds what all of these have written. ΔW k̂ with k̂ = P softmax(β cos(k)) does not: k̂ is the
update of a modern Hopfield network that remembers P (Ramsauer et al., ICLR 2021, eq. 3), here in the metric A0⁻¹, in
which ordinary text's keys are alike in all directions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class KeyRetrieval:
    """All edited keys of a layer, as C. `grown` gives a new one, so that an earlier one stays what it was.

    Arguments:
        sharpness: β.
        rows: of C, batch by batch; a batch's have as many columns as there are keys up to its last.
    """

    def __init__(self, sharpness: float, rows: tuple[Float[Tensor, "u _"], ...] = ()):
        self.sharpness, self._rows = sharpness, rows
        self._matrices: tuple[Tensor, Tensor] | None = None

    def grown(self, rows: Float[Tensor, "u p"]) -> KeyRetrieval:
        """These keys and a batch's, whose rows of C are given."""
        return KeyRetrieval(self.sharpness, (*self._rows, rows))

    def sharpened(self, sharpness: float) -> KeyRetrieval:
        """The same keys with another β."""
        return KeyRetrieval(sharpness, self._rows)

    def to(self, device: torch.device) -> KeyRetrieval:
        """The same on another device."""
        return KeyRetrieval(self.sharpness, tuple(rows.to(device) for rows in self._rows))

    @property
    def keys(self) -> int:
        """p."""
        return self._rows[-1].shape[1] if self._rows else 0

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self._rows) + 2 * 4 * self.keys**2

    def retrieved(
        self, coordinates: Float[Tensor, "*tokens p"], prior: Float[Tensor, " *tokens"]
    ) -> Float[Tensor, "*tokens p"]:
        """Vᵀk̂ of keys whose Vᵀk and kᵀA0⁻¹k are given."""
        match, known = self._settled()
        cosines = coordinates @ match.T / prior.sqrt()[..., None]
        return torch.softmax(self.sharpness * cosines, -1) @ known.T

    def _settled(self) -> tuple[Float[Tensor, "p p"], Float[Tensor, "p p"]]:
        """C with its rows divided by √(p_iᵀA0⁻¹p_i), and VᵀP; made when first used, from nothing but the rows."""
        if self._matrices is None:
            count = self.keys
            root = torch.zeros(count, count, dtype=torch.float64, device=self._rows[0].device)
            for rows in self._rows:
                end = rows.shape[1]
                root[end - len(rows) : end, :end] = rows
            norms = (root.square().sum(1) - 1).sqrt()
            identity = torch.eye(count, dtype=torch.float64, device=root.device)
            known = root.T - torch.linalg.solve_triangular(root, identity, upper=False)
            self._matrices = (root / norms[:, None]).float(), known.float()
        return self._matrices
