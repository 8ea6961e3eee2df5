"""Recursive least squares for the rewrite modules, in float64.

Legend: C0 covariance (m×m), λ its weight, A = λC0 + P Pᵀ with P (m×p) all keys absorbed so far, K (m×u) the keys
and R (d×u) the residuals of one batch. Δ = R Kᵀ (A + K Kᵀ)⁻¹ (CoachHooK, EMNLP 2024; MEMIT, eq. 14, with A = λC0).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from coachhook.errors import CoachHookError


class CovarianceError(CoachHookError, ValueError):
    """A covariance cannot be used: wrong shape, NaN, not positive definite, another model's or other layers'."""


class RecursiveLeastSquares:
    """The accumulator A of one layer, kept as the Cholesky factor of C0 and the absorbed keys (Woodbury identity).

    With fixed targets, T batches one after the other give the same weights as one joint batch.

    Arguments:
        covariance: C0 (m×m), symmetric positive definite.
        weight: λ > 0.

    Raises:
        CovarianceError: the covariance is not square, not finite or not positive definite.
    """

    def __init__(self, covariance: Float[Tensor, "m m"], weight: float):
        if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
            raise CovarianceError(f"covariance: shape {tuple(covariance.shape)} is not square")
        if not torch.isfinite(covariance).all():
            raise CovarianceError("covariance: it holds NaN or infinite values; compute it again")
        if not weight > 0:
            raise ValueError(f"covariance_weight: {weight} must be positive")
        self.weight = float(weight)
        self._factor, failed = torch.linalg.cholesky_ex(covariance.double())
        if failed:
            raise CovarianceError(
                "covariance: it is not positive definite; compute it from more tokens than the keys are wide "
                f"(width {covariance.shape[0]})"
            )
        self.forget()

    def forget(self) -> None:
        """A ← λC0."""
        empty = self._factor.new_zeros((self._factor.shape[0], 0))
        self._whitened = empty  # B = (λC0)⁻¹ P
        self._keys = empty  # P
        self._gram = empty.new_zeros((0, 0))  # lower Cholesky factor of G = I + Pᵀ B; grows with each batch

    @property
    def absorbed(self) -> int:
        """Number of keys absorbed so far."""
        return self._keys.shape[1]

    def update(
        self, keys: Float[Tensor, "m u"], residuals: Float[Tensor, "d u"], past_weight: float = 1.0
    ) -> Float[Tensor, "d m"]:
        """Δ for one batch, float64; its keys are then part of A, multiplied by `past_weight` (0: forgotten)."""
        gain = self.gain(keys)
        self.absorb(keys, past_weight)
        return residuals.double() @ gain.T

    def gain(self, keys: Float[Tensor, "m u"]) -> Float[Tensor, "m u"]:
        """(A + K Kᵀ)⁻¹ K, float64: Δ is R times its transpose. A is left as it is."""
        keys = keys.double()
        solved = self.solve(keys)
        inner = keys.T @ solved
        inner.diagonal().add_(1.0)
        return torch.linalg.solve(inner, solved, left=False)

    def solve(self, vectors: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """A⁻¹ X, float64."""
        solved = self._solve_prior(vectors.double())
        if not self.absorbed:
            return solved
        seen = torch.cholesky_solve(self._whitened.T @ vectors.double(), self._gram)
        return solved - self._whitened @ seen

    def absorb(self, keys: Float[Tensor, "m u"], past_weight: float = 1.0) -> None:
        """A ← A + past_weight · K Kᵀ."""
        if past_weight == 0:
            return
        keys = keys.double() * past_weight**0.5
        whitened = self._solve_prior(keys)
        cross = self._keys.T @ whitened
        corner = keys.T @ whitened
        corner.diagonal().add_(1.0)
        old, new = self.absorbed, keys.shape[1]
        below = torch.linalg.solve_triangular(self._gram, cross, upper=False).T
        gram = self._gram.new_zeros((old + new, old + new))
        gram[:old, :old] = self._gram
        gram[old:, :old] = below
        gram[old:, old:] = torch.linalg.cholesky(corner - below @ below.T)
        self._gram = gram
        self._keys = torch.cat([self._keys, keys], 1)
        self._whitened = torch.cat([self._whitened, whitened], 1)

    def _solve_prior(self, vectors: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """(λC0)⁻¹ X."""
        return torch.cholesky_solve(vectors, self._factor) / self.weight
