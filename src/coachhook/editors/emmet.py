"""EMMET: batched editing under equality constraints at one layer (Gupta et al., EMNLP 2024 Findings).

Of all Δ with Δ K = R it takes the one that changes ordinary keys least; with one request it is ROME's update.
Softened by a slack e > 0 it is MEMIT's update with λ = e · covariance_weight.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from coachhook.editors.locate import LocateConfig, LocateThenEdit
from coachhook.solver import RecursiveLeastSquares


class EmmetConfig(LocateConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

    layers: tuple[int, ...] = Field(min_length=1, max_length=1, description="the edited layer, as a list of one")
    covariance_weight: float = Field(1000, gt=0, description="weight of the covariance C0 (EasyEdit: 10,000)")
    ridge: float = Field(0.0, ge=0, description="weight of ‖Δ‖² (published: update_norm_lambda)")
    equality_slack: float = Field(
        0.1,
        gt=0,
        description="e, how far a batch of several requests may miss its targets (published: emmet_lambda)",
    )


class Emmet(LocateThenEdit):
    """Δ = R (Kᵀ C⁻¹ K + e·I)⁻¹ Kᵀ C⁻¹ with C = covariance_weight · C0 + ridge · I; a batch of one has no slack (e = 0),
    as in the released code.
    """

    config_class = EmmetConfig
    paper = "Gupta et al., EMNLP 2024 Findings: A Unified Framework for Model Editing"
    config: EmmetConfig

    def _prepare(self) -> None:
        weight, (layer,) = self.config.covariance_weight, self.config.layers
        matrix = self._matrix(layer).double()
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        self._preserved = RecursiveLeastSquares(matrix + self.config.ridge / weight * identity, weight)

    def _solve(self, layer: int, keys: Float[Tensor, "m u"]) -> Float[Tensor, "m u"]:
        keys = keys.double()
        whitened = self._preserved.solve(keys)
        constraints = keys.T @ whitened
        if keys.shape[1] > 1:
            constraints.diagonal().add_(self.config.equality_slack)
        return torch.linalg.solve(constraints, whitened, left=False)
