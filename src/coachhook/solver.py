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
        _check(covariance)
        if not weight > 0:
            raise ValueError(f"covariance_weight: {weight} must be positive")
        self.weight = float(weight)
        self._factor, failed = torch.linalg.cholesky_ex(covariance.double())
        if failed:
            raise CovarianceError(
                "covariance: it is not positive definite; compute it from more tokens than the keys are wide "
                f"(width {covariance.shape[0]})"
            )
        self._start(covariance)

    def forget(self) -> None:
        """A as it was before any key; absorbing the same keys again in the same order takes no time."""
        self._forgotten = self._keys, self._whitened, self._gram
        self._clear()

    def _clear(self) -> None:
        empty = self._empty
        self._whitened = empty  # B = (λC0)⁻¹ P
        self._keys = empty  # P
        self._gram = empty.new_zeros((0, 0))  # lower Cholesky factor of G = I + Pᵀ B; grows with each batch

    @property
    def device(self) -> torch.device:
        return self._empty.device

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

    def factor(self, keys: Float[Tensor, "m u"]) -> tuple[Float[Tensor, "m u"], Float[Tensor, "u u"]]:
        """V and lower L, float64: (A + K Kᵀ)⁻¹ = A⁻¹ − V Vᵀ and `gain(K)` = V L⁻¹. A is left as it is."""
        keys = keys.double()
        solved = self.solve(keys)
        inner = keys.T @ solved
        inner.diagonal().add_(1.0)
        root = torch.linalg.cholesky(inner)
        return torch.linalg.solve_triangular(root, solved.T, upper=False).T, root

    def prior_root(self, vectors: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """M X, float64, with M Mᵀ = (λC0)⁻¹."""
        upper = self._factor.T
        return torch.linalg.solve_triangular(upper, vectors.to(upper), upper=True) / self.weight**0.5

    def solve(self, vectors: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """A⁻¹ X, float64."""
        solved = self._solve_prior(vectors.double())
        if not self.absorbed:
            return solved
        self._settle()
        seen = torch.cholesky_solve(self._whitened.T @ vectors.double(), self._gram)
        return solved - self._whitened @ seen

    def absorb(self, keys: Float[Tensor, "m u"], past_weight: float = 1.0) -> None:
        """A ← A + past_weight · K Kᵀ."""
        if past_weight == 0:
            return
        keys = keys.to(self._empty) * past_weight**0.5
        if self._recall(keys):
            return
        self._settle()
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

    def _start(self, covariance: Float[Tensor, "m m"]) -> None:
        self._empty = covariance.new_zeros((covariance.shape[0], 0), dtype=torch.float64)
        self._clear()
        self.forget()

    def _recall(self, keys: Float[Tensor, "m u"]) -> bool:
        """Absorb keys that stood at this very place before all was forgotten, as in a rollback."""
        old, new = self.absorbed, self.absorbed + keys.shape[1]
        earlier, whitened, gram = self._forgotten
        if not torch.equal(earlier[:, old:new], keys):
            self._forgotten = self._empty, self._empty, self._gram[:0, :0]
            return False
        self._keys, self._whitened, self._gram = earlier[:, :new], whitened[:, :new], gram[:new, :new]
        return True

    def _settle(self) -> None:
        """Lay out what was recalled as it was when it was computed, for solves to have the same bits."""
        parts = self._keys, self._whitened, self._gram
        self._keys, self._whitened, self._gram = (part.contiguous() for part in parts)

    def _solve_prior(self, vectors: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """(λC0)⁻¹ X."""
        return torch.cholesky_solve(vectors, self._factor) / self.weight


class FactoredLeastSquares(RecursiveLeastSquares):
    """The same accumulator kept as V (m×p) alone: A⁻¹ = (λC0)⁻¹ − V Vᵀ.

    A batch adds its own columns and leaves the earlier ones as they are, and ΔW lies in their span. So a journal of
    a batch's columns of ΔW and V is all that going on needs, the keys themselves left out.
    """

    def forget(self) -> None:
        self._factors = self._empty

    @property
    def absorbed(self) -> int:
        return self._factors.shape[1]

    def solve(self, vectors: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        vectors = vectors.double()
        return self._solve_prior(vectors) - self._factors @ (self._factors.T @ vectors)

    def known(self, keys: Float[Tensor, "m u"]) -> Float[Tensor, "p u"]:
        """VᵀK, float64."""
        return self._factors.T @ keys.double()

    def absorb(self, keys: Float[Tensor, "m u"], past_weight: float = 1.0) -> None:
        if past_weight:
            self.absorb_factor(self.factor(keys.double() * past_weight**0.5)[0])

    def absorb_factor(self, factor: Float[Tensor, "m u"]) -> None:
        """A⁻¹ ← A⁻¹ − V Vᵀ, V being what `factor` gave for a batch."""
        self._factors = torch.cat([self._factors, factor.to(self._factors)], 1)


class NullSpaceLeastSquares(RecursiveLeastSquares):
    """Least squares whose update is zero on everything outside C0's null space (AlphaEdit, ICLR 2025).

    P projects on the eigenvectors of C0 whose eigenvalues are below a threshold. Before any key A⁻¹ is P/λ, and
    Δᵀ = (P (Σ K'K'ᵀ + K Kᵀ) + λI)⁻¹ P K Rᵀ.

    Arguments:
        covariance: C0 (m×m), symmetric.
        threshold: in the units of C0's eigenvalues.
        weight: λ > 0, of ‖Δ‖².

    Raises:
        CovarianceError: the covariance is not square or not finite, or none or all of its eigenvalues are below
            the threshold.
    """

    def __init__(self, covariance: Float[Tensor, "m m"], threshold: float, weight: float):
        _check(covariance)
        if not weight > 0:
            raise ValueError(f"weight: {weight} must be positive")
        self.weight = float(weight)
        values, vectors = torch.linalg.eigh(covariance.double())
        below = values < threshold
        if not below.any() or below.all():
            which = "none of them is below it, so nothing could be edited; raise it"
            if below.any():
                which = "all of them are below it, so nothing would be protected; lower it"
            low, middle, high = (f"{values.quantile(q).item():.3g}" for q in (0.0, 0.5, 1.0))
            raise CovarianceError(
                f"nullspace_threshold: {threshold:g}, and the covariance's eigenvalues run from {low} to {high}, "
                f"half of them up to {middle}: {which}"
            )
        self._inside = bool(below.sum() <= len(values) // 2)  # the smaller of the two bases is kept
        self._basis = vectors[:, below if self._inside else ~below].contiguous()
        self._start(covariance)

    def _solve_prior(self, vectors: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """P X / λ."""
        kept = self._basis @ (self._basis.T @ vectors)
        return (kept if self._inside else vectors - kept) / self.weight


def _check(covariance: Tensor) -> None:
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise CovarianceError(f"covariance: shape {tuple(covariance.shape)} is not square")
    if not torch.isfinite(covariance).all():
        raise CovarianceError("covariance: it holds NaN or infinite values; compute it again")
