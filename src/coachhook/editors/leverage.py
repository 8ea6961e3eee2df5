"""CoachHooK behind the leverage gate: the same update, kept in the factors that the gate decides by.

Legend: A = λC0 + P Pᵀ, P all earlier keys, K (m×u) a batch's keys, R (d×u) its residuals, L Lᵀ = I + KᵀA⁻¹K. A layer's
part of a step is `left` = R L⁻ᵀ (d×u) and `right` = A⁻¹K L⁻ᵀ (m×u): Δ = left rightᵀ, (A + K Kᵀ)⁻¹ = A⁻¹ − right rightᵀ.
With V all earlier `right`, `root` = [KᵀV | L] (u×p) are the batch's rows of C, C Cᵀ = I + PᵀA0⁻¹P (see key_retrieval).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from coachhook.covariance_file import Covariance
from coachhook.edit_request import EditRequest
from coachhook.editors.base import Update
from coachhook.editors.coachhook import CoachHook, CoachHookConfig
from coachhook.gates import Gate
from coachhook.key_retrieval import KeyRetrieval
from coachhook.keys import KeyPrompts
from coachhook.leverage import Calibration, LeverageGate, prior_sketch
from coachhook.solver import CovarianceError, FactoredLeastSquares

logger = logging.getLogger(__name__)


class LeverageConfig(CoachHookConfig):
    """CoachHooK's hyper-parameters, and the gate's."""

    bare_subject: bool = Field(
        False,
        description="whether a third of the key is that of '{subject} is a', of prompts that begin otherwise",
    )
    false_positive_rate: float | None = Field(
        0.05,
        gt=0,
        lt=1,
        description="share of ordinary text's tokens it may swap; null, or where nothing is said and the covariance "
        "has no sample of such keys: only the edited keys set τ",
    )
    edited_fraction: float = Field(
        0.7,
        ge=0,
        le=1,
        description="τ is at least this fraction of the edited subjects' smallest leverage",
    )
    retrieval_sharpness: float | None = Field(
        20.0,
        gt=0,
        description="β: W_h answers for the edited keys like a token's, by the softmax of β times their cosines; "
        "null: for the token's own key",
    )
    sketch_size: int = Field(
        1536, ge=1, description="rows that kᵀA0⁻¹k is taken from; keys of at most this width are exact"
    )

    @field_validator("past_weight")
    @classmethod
    def _all_keys_remembered(cls, past_weight: float | str) -> float | str:
        if past_weight != 1:
            raise ValueError("must be 1 with gate: leverage, which asks what the solution knows from all edits")
        return past_weight


class LeverageHook(CoachHook):
    """CoachHooK, with W_h at tokens whose key the solution knows from edits. Later solves go on from the factors alone.

    It answers for the edited keys that a token's key resembles. The first step also holds the sketch of (λC0)⁻¹
    (`sketch.<layer>`), so saved edits decide without the covariance.
    """

    paper = "Li et al., EMNLP 2024: Consecutive Batch Model Editing with HooK Layers; the gate is this project's own"
    growing_state = (
        "per layer two vectors per edit, as wide as keys and hidden states, and five numbers per pair of edits"
    )
    remembers_keys = False
    config_class = LeverageConfig
    config: LeverageConfig

    @classmethod
    def fitted(cls, config: LeverageConfig, covariance: Covariance | None) -> LeverageConfig:
        """Without a sample of background keys the edited keys alone set τ, unless a rate was asked for."""
        asked = "false_positive_rate" in config.model_fields_set
        if covariance is None or asked or all(len(covariance.background.get(n, ())) for n in config.layers):
            return config
        logger.warning(
            "the covariance has no sample of background keys: the gate keeps to no false-positive rate and goes by the "
            "edited keys alone; compute_covariance takes such a sample"
        )
        return config.model_copy(update={"false_positive_rate": None})

    def replay(self, update: Update) -> None:
        super().replay(update)
        for hook in self.hooks:
            layer = str(hook.layer)
            hook.gate = replace(hook.gate, threshold=update.info["tau"][layer])
            if self._covariance is not None:
                right = update.tensors[f"right.{layer}"].to(hook.device)
                self._solvers[hook.layer].absorb_factor(right)
                self._calibrations[hook.layer].absorb(hook.gate, right, update.info["smallest_edited"][layer])

    def thresholds(self) -> dict[int, float]:
        return {hook.layer: hook.gate.threshold for hook in self.hooks}

    def _prepare(self) -> None:
        weight = self.config.covariance_weight
        self._calibrations = {layer: self._calibration(layer) for layer in self.config.layers}
        self._solvers = {layer: FactoredLeastSquares(self._matrix(layer), weight) for layer in self.config.layers}
        self._smallest: dict[int, float] = {}

    def _calibration(self, layer: int) -> Calibration:
        config, background = self.config, self._covariance.background.get(layer)
        if background is None or not len(background):
            if config.false_positive_rate is not None:
                raise CovarianceError(
                    "covariance: it has no sample of background keys, by which the leverage gate keeps to "
                    f"false_positive_rate ({config.false_positive_rate:g}); take a file that compute_covariance "
                    "wrote, or false_positive_rate=None to go by the edited keys alone"
                )
            background = torch.zeros(0, self.parts.width(layer))
        return Calibration(background.to(self.parts.device(layer)), config.false_positive_rate, config.edited_fraction)

    def _gate(self) -> Gate:
        sharpness = self.config.retrieval_sharpness
        return LeverageGate(retrieval=None if sharpness is None else KeyRetrieval(sharpness))

    def _key_prompts(self, requests: Sequence[EditRequest]) -> KeyPrompts:
        device = self.parts.input_device
        return KeyPrompts.encode(self.tokenizer, requests, self.prefixes, device, bare=self.config.bare_subject)

    def _compute(self, requests: Sequence[EditRequest]) -> Update:
        update = super(CoachHook, self)._compute(requests)
        told = {"tau": self.thresholds(), "smallest_edited": self._smallest}
        return Update(
            update.tensors, {name: {str(layer): value for layer, value in by.items()} for name, by in told.items()}
        )

    def _step(self, layer: int, keys: Float[Tensor, "m u"], residuals: Float[Tensor, "d u"]) -> dict[str, Tensor]:
        solver = self._solvers[layer]
        right, root = solver.factor(keys)
        left = torch.linalg.solve_triangular(root, residuals.T.double(), upper=False).T
        step = {"left": left.float().contiguous(), "right": right.float().contiguous()}
        if self.config.retrieval_sharpness is not None:
            step["root"] = torch.cat([solver.known(keys).T, root], 1).float()
        if self.hooks[layer].gate.sketch is None:
            step["sketch"] = prior_sketch(solver, len(keys), self.config.sketch_size, self.config.seed)
        return step

    def _apply(self, layer: int, step: dict[str, Tensor]) -> None:
        hook = self.hooks[layer]
        hook.grow(step["left"], step["right"])
        hook.gate = hook.gate.grown(hook.factors, step.get("sketch"), step.get("root"))

    def _set_gate(self, layer: int, keys: Float[Tensor, "u m"], step: dict[str, Tensor]) -> None:
        hook, calibration = self.hooks[layer], self._calibrations[layer]
        smallest = self._smallest[layer] = calibration.smallest_with(hook.gate, keys)
        hook.gate = replace(hook.gate, threshold=calibration.threshold(hook.gate, step["right"], smallest))

    def _forget(self, layer: int) -> None:
        super()._forget(layer)
        self._calibrations[layer].forget()
