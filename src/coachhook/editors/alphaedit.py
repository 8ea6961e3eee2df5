"""AlphaEdit: least squares in the null space of the covariance, with memory of past keys (Fang et al., ICLR 2025).

P projects on the eigenvectors of C0 with small eigenvalues, so ΔW hardly answers to ordinary text's keys. The released
solve, Δᵀ = (P (C_p + K Kᵀ) + L2·I)⁻¹ P K Rᵀ, and the paper's, Δ = R Kᵀ P (C_p P + K Kᵀ P + I)⁻¹, are one equation with
L2 = 10 and 1: `ridge`.
"""

from __future__ import annotations

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from coachhook.editors.locate import LocateConfig, LocateThenEdit
from coachhook.solver import CovarianceError, NullSpaceLeastSquares


class AlphaEditConfig(LocateConfig):
    """Hyper-parameters; defaults are the released ones for GPT2-XL."""

    nullspace_threshold: float = Field(
        0.02,
        gt=0,
        description="eigenvalues of C0 = E[k kᵀ] below this span the null space; depends on the model's scale",
    )
    ridge: float = Field(10.0, gt=0, description="L2, weight of ‖Δ‖²")


class AlphaEdit(LocateThenEdit):
    """AlphaEdit, batch after batch.

    A batch is remembered by the keys it was solved with. As layers are written from below, they are also its keys once
    all layers are written, for which the released code makes another pass.
    """

    config_class = AlphaEditConfig
    paper = "Fang et al., ICLR 2025: AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models"
    remembers_keys = True
    config: AlphaEditConfig

    def _prepare(self) -> None:
        self._solvers = {layer: self._solver(layer) for layer in self.config.layers}

    def _solver(self, layer: int) -> NullSpaceLeastSquares:
        try:
            return NullSpaceLeastSquares(self._matrix(layer), self.config.nullspace_threshold, self.config.ridge)
        except CovarianceError as error:
            raise CovarianceError(f"{error} (layer {layer})") from None

    def _solve(self, layer: int, keys: Float[Tensor, "m u"]) -> Float[Tensor, "m u"]:
        return self._solvers[layer].gain(keys)

    def _remember(self, layer: int, keys: Float[Tensor, "m u"]) -> None:
        self._solvers[layer].absorb(keys)

    def _forget(self, layer: int) -> None:
        self._solvers[layer].forget()
