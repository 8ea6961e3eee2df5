"""CoachHooK and its two ablations: one update rule, with or without a gate, with or without memory of past keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from coachhook.edit_request import EditRequest
from coachhook.editors.base import Update
from coachhook.editors.locate import MemitConfig, MemitSolve
from coachhook.gates import Gate, NoGate, PaperGate, z_scores
from coachhook.tokens import pad, pad_id
from coachhook.tracing import rewrite_inputs


class CoachHookConfig(MemitConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL and GPT-J."""

    gate: Literal["paper", "leverage", "off"] = Field("paper", description="which tokens the hook layers answer for")
    covariance_weight: float = Field(15_000, gt=0, description="λ, weight of the covariance C0")
    alpha: float = Field(2.2, description="α_z, the paper gate's first threshold")
    past_weight: Annotated[float, Field(ge=0)] | Literal["lambda"] = Field(
        1.0,
        description="weight of earlier batches' keys: 1, 0 (MEMIT forgets them) or lambda (released ablation)",
    )

    @property
    def past_key_weight(self) -> float:
        return self.covariance_weight if self.past_weight == "lambda" else self.past_weight


class CoachHook(MemitSolve):
    """Consecutive batch editing with hook layers: Δ = R Kᵀ (λC0 + Σ K'K'ᵀ + K Kᵀ)⁻¹, behind a gate."""

    config_class = CoachHookConfig
    paper = "Li et al., EMNLP 2024: Consecutive Batch Model Editing with HooK Layers"
    effect = "scoped"
    config: CoachHookConfig

    @classmethod
    def variant(cls, hyperparameters: Mapping) -> type[CoachHook]:
        from coachhook.editors.leverage import LeverageHook  # which is a CoachHook

        if hyperparameters.get("gate") == "leverage":
            return LeverageHook
        return CoachHook if cls is LeverageHook else cls

    @property
    def remembers_keys(self) -> bool:
        return self.config.past_key_weight > 0

    def replay(self, update: Update) -> None:
        super().replay(update)
        for hook in self.hooks:
            if isinstance(hook.gate, PaperGate):
                hook.gate.alpha = update.info["alpha"][str(hook.layer)]

    def thresholds(self) -> dict[int, float] | None:
        return self._alphas() or None

    @torch.no_grad()
    def z_scores(self, texts: Sequence[str]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """z of every token as the paper's figure 3 shows it: the base model's keys, through each layer's ΔW."""
        batch = self._batch(texts)
        with self.hooks.modes("off"), rewrite_inputs(self.parts, self.config.layers) as keys:
            self.parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        for hook in self.hooks:
            yield hook.layer, z_scores(hook.change(keys[hook.layer]), batch.real.to(hook.device)), batch.real

    def _compute(self, requests: Sequence[EditRequest]) -> Update:
        update = super()._compute(requests)
        with torch.no_grad(), self.hooks.modes("off"):
            self._tighten(requests)
        return Update(update.tensors, {"alpha": {str(layer): alpha for layer, alpha in self._alphas().items()}})

    def _remember(self, layer: int, keys: Tensor) -> None:
        self._solvers[layer].absorb(keys, self.config.past_key_weight)

    def _forget(self, layer: int) -> None:
        self._solvers[layer].forget()

    def _tighten(self, requests: Sequence[EditRequest]) -> None:
        """Lower α so that each of the batch's prompts, without its target, can pass every layer's gate."""
        if self.config.gate == "off":
            return
        batch = self._batch([request.text for request in requests])
        with rewrite_inputs(self.parts, self.config.layers) as keys:
            self.parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        for hook in self.hooks:
            hook.gate.tighten(hook.change(keys[hook.layer]), batch.real.to(hook.device))

    def _batch(self, texts: Sequence[str]):
        ids = [self.tokenizer(text)["input_ids"] for text in texts]
        return pad(ids, pad_id(self.tokenizer), self.parts.input_device)

    def _gate(self) -> Gate:
        return PaperGate(self.config.alpha) if self.config.gate == "paper" else NoGate()

    def _alphas(self) -> dict[int, float]:
        return {hook.layer: hook.gate.alpha for hook in self.hooks if isinstance(hook.gate, PaperGate)}


class WithoutHook(CoachHook):
    """The paper's ablation: the same update, its new weights for every token."""

    effect = "everywhere"


class Memit(CoachHook):
    """MEMIT batch after batch: each solve knows nothing of the keys of earlier batches."""

    paper = "Meng et al., ICLR 2023: Mass-Editing Memory in a Transformer"
    effect = "everywhere"
