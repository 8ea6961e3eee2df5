"""CoachHooK and its two ablations: one update rule, with or without a gate, with or without memory of past keys.

Legend: W_h = W0 + ΔW hook weights, K keys, R residuals, Z targets, h hidden state at the last edited layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from coachhook.contexts import generate_prefixes
from coachhook.covariance import Covariance
from coachhook.edit_request import EditRequest
from coachhook.editors.base import Method, MethodConfig, Update
from coachhook.gates import Gate, NoGate, PaperGate, z_scores
from coachhook.hooks import HookLayers
from coachhook.keys import KeyPrompts, LayerSweep
from coachhook.solver import CovarianceError, RecursiveLeastSquares
from coachhook.targets import TargetSettings, optimise_targets
from coachhook.tokens import pad, pad_id
from coachhook.tracing import rewrite_inputs


class CoachHookConfig(MethodConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL and GPT-J."""

    gate: Literal["paper", "off"] = Field("paper", description="which tokens the hook layers answer for")
    covariance_weight: float = Field(15_000, gt=0, description="λ, weight of the covariance C0")
    alpha: float = Field(2.2, description="α_z, the paper gate's first threshold")
    past_weight: Annotated[float, Field(ge=0)] | Literal["lambda"] = Field(
        1.0,
        description="weight of earlier batches' keys: 1, 0 (MEMIT forgets them) or lambda (released ablation)",
    )
    target_steps: int = Field(20, ge=1, description="Adam steps per target")
    target_lr: float = Field(0.5, gt=0, description="Adam's learning rate for targets")
    clamp: float = Field(0.75, gt=0, description="‖δ‖ is at most this times ‖h‖")
    kl_factor: float = Field(0.0625, ge=0, description="weight of KL(base ‖ edited) on '{subject} is a'")
    weight_decay: float = Field(0.5, ge=0, description="weight of ‖δ‖/‖h‖²")
    context_templates: int | tuple[str, ...] = Field(
        5, description="how many prefixes the model generates, or the prefixes themselves"
    )
    context_length: int = Field(10, ge=1, description="tokens per generated prefix")

    @property
    def past_key_weight(self) -> float:
        return self.covariance_weight if self.past_weight == "lambda" else self.past_weight

    @property
    def targets(self) -> TargetSettings:
        return TargetSettings(self.target_steps, self.target_lr, self.clamp, self.kl_factor, self.weight_decay)


class CoachHook(Method):
    """Consecutive batch editing with hook layers (EMNLP 2024); with `gate: off` the no-hook ablation; and with
    `past_weight: 0` besides, MEMIT (Meng et al., 2023) batch after batch.
    """

    config_class = CoachHookConfig
    needs_covariance = True
    config: CoachHookConfig

    def __init__(self, model, tokenizer, config: CoachHookConfig, covariance: Covariance | None):
        super().__init__(model, tokenizer, config, covariance)
        self._covariance = covariance
        self._check_widths()
        self._solvers = {layer: self._solver(layer) for layer in config.layers}  # refuses before any hook is set
        self.prefixes = self._make_prefixes()
        self.hooks = HookLayers(self.parts, {layer: self._gate() for layer in config.layers})

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        layers = self.config.layers
        with self.hooks.modes("validated"):
            targets = optimise_targets(
                self.parts, self.tokenizer, requests, layers[-1], self.prefixes, self.config.targets
            ).values
        with torch.no_grad(), self.hooks.modes("temporary"):
            tensors = self._write(requests, targets)
        with torch.no_grad(), self.hooks.modes("off"):
            self._tighten(requests)
        return Update(tensors, {"alpha": {str(layer): alpha for layer, alpha in self._alphas().items()}})

    def replay(self, update: Update) -> None:
        for hook in self.hooks:
            left, right = update.tensors[f"left.{hook.layer}"], update.tensors[f"right.{hook.layer}"]
            device = hook.device
            hook.add(left.to(device) @ right.to(device).T)
            self._solvers[hook.layer].absorb(
                update.tensors[f"keys.{hook.layer}"].to(device), self.config.past_key_weight
            )
            if isinstance(hook.gate, PaperGate):
                hook.gate.alpha = update.info["alpha"][str(hook.layer)]

    def reset(self) -> None:
        for hook in self.hooks:
            hook.reset()
            hook.gate = self._gate()
            self._solvers[hook.layer].forget()

    def disabled(self) -> AbstractContextManager[None]:
        return self.hooks.modes("off")

    def close(self) -> None:
        self.hooks.close()

    def thresholds(self) -> dict[int, float] | None:
        return self._alphas() or None

    @torch.no_grad()
    def z_scores(self, texts: Sequence[str]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """z of every token as the paper's figure 3 shows it: the base model's keys, through each layer's ΔW."""
        batch = self._batch(texts)
        with self.hooks.modes("off"), rewrite_inputs(self.parts, self.config.layers) as keys:
            self.parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        for hook in self.hooks:
            yield hook.layer, z_scores(hook.change(keys[hook.layer]), batch.real), batch.real

    def _write(self, requests: Sequence[EditRequest], targets: Tensor) -> dict[str, Tensor]:
        """W_h += Δ, layer by layer, each layer's hook validated once it is written (temporary hooks elsewhere)."""
        layers = self.config.layers
        prompts = KeyPrompts.encode(self.tokenizer, requests, self.prefixes, self.model.device)
        sweep = LayerSweep(self.parts, self.hooks, prompts, layers)
        tensors = {}
        for index, layer in enumerate(layers):
            keys = sweep.keys(layer).T.contiguous()
            residuals = (targets - sweep.hidden(layer)) / (len(layers) - index)
            left, right = residuals.T.contiguous(), self._solvers[layer].gain(keys).float().contiguous()
            self.hooks[layer].add(left @ right.T)
            self.hooks[layer].mode = "validated"
            self._solvers[layer].absorb(keys, self.config.past_key_weight)
            tensors |= {f"left.{layer}": left, f"right.{layer}": right, f"keys.{layer}": keys}
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def _tighten(self, requests: Sequence[EditRequest]) -> None:
        """Lower α so that each of the batch's prompts, without its target, can pass every layer's gate."""
        if self.config.gate == "off":
            return
        batch = self._batch([request.text for request in requests])
        with rewrite_inputs(self.parts, self.config.layers) as keys:
            self.parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        for hook in self.hooks:
            hook.gate.tighten(hook.change(keys[hook.layer]), batch.real)

    def _batch(self, texts: Sequence[str]):
        ids = [self.tokenizer(text)["input_ids"] for text in texts]
        return pad(ids, pad_id(self.tokenizer), self.model.device)

    def _solver(self, layer: int) -> RecursiveLeastSquares:
        device = self.parts.rewrite_module(layer).weight.device
        return RecursiveLeastSquares(self._covariance.matrices[layer].to(device), self.config.covariance_weight)

    def _gate(self) -> Gate:
        return PaperGate(self.config.alpha) if self.config.gate == "paper" else NoGate()

    def _alphas(self) -> dict[int, float]:
        return {hook.layer: hook.gate.alpha for hook in self.hooks if isinstance(hook.gate, PaperGate)}

    def _make_prefixes(self) -> tuple[str, ...]:
        config = self.config
        if isinstance(config.context_templates, tuple):
            return config.context_templates
        return generate_prefixes(
            self.model, self.tokenizer, config.context_templates, config.context_length, config.seed
        )

    def _check_widths(self) -> None:
        for layer in self.config.layers:
            width = self.parts.width(layer)
            if layer not in self._covariance.matrices:
                raise CovarianceError(
                    f"covariance: holds layers {list(self._covariance.layers)}, not {layer}; compute it for {layer} too"
                )
            if self._covariance.matrices[layer].shape[0] != width:
                size = self._covariance.matrices[layer].shape[0]
                raise CovarianceError(
                    f"covariance: layer {layer} is {size} wide, the model's keys are {width} wide; "
                    "compute it on this model"
                )
