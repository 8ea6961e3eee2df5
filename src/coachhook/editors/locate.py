"""What the locate-then-edit methods share: a target per request, then least squares layer by layer (Meng et al., 2023).

Legend: ΔW hook layers' weights (d×m), K keys (m×u), R residuals (d×u), Z targets, h hidden state at the last
edited layer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from coachhook.changes import kept_change, smallest
from coachhook.contexts import generate_prefixes
from coachhook.covariance_file import Covariance
from coachhook.edit_request import EditRequest
from coachhook.editors.base import HookLayerMethod, MethodConfig, Update
from coachhook.gates import Gate, NoGate
from coachhook.hooks import HookLayers
from coachhook.keys import KeyPrompts, LayerSweep
from coachhook.residuals import before_norm, norms_behind
from coachhook.solver import CovarianceError, RecursiveLeastSquares
from coachhook.targets import TargetSettings, optimise_targets


class LocateConfig(MethodConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

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
    def targets(self) -> TargetSettings:
        return TargetSettings(self.target_steps, self.target_lr, self.clamp, self.kl_factor, self.weight_decay)


class LocateThenEdit(HookLayerMethod):
    """Targets for a whole batch, then every layer's ΔW from its keys and residuals; a method says how (`_solve`).

    A step is kept as `left.<layer>` (d×u) and `right.<layer>` (m×u), Δ = left · rightᵀ, or as `delta.<layer>` (d×m)
    where that is smaller, and `keys.<layer>` (m×u) where later solves need its keys.
    """

    config_class = LocateConfig
    growing_state = "nothing"
    effect = "everywhere"
    needs_covariance = True
    remembers_keys: bool = False
    """Whether the solves of later batches need a batch's keys."""
    config: LocateConfig

    def __init__(self, model, tokenizer, config: LocateConfig, covariance: Covariance | None):
        super().__init__(model, tokenizer, config, covariance)
        self._covariance = covariance
        if covariance is not None:  # without one it answers and replays, and cannot edit
            self._check_widths()
            self._norms = norms_behind(self.parts, config.layers)
            self._prepare()  # refuses before any hook is set
            self.prefixes = self._make_prefixes()
        self.hooks = HookLayers(self.parts, {layer: self._gate() for layer in config.layers})

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        before = {hook: hook.state() for hook in self.hooks}
        try:
            update = self._compute(requests)
        finally:  # a step that fails leaves nothing behind, and one that works is applied as its replay will be
            for hook, state in before.items():
                hook.restore(state)
        self.replay(update)
        return update

    def replay(self, update: Update) -> None:
        for hook in self.hooks:
            end = f".{hook.layer}"
            names = [name for name in update.tensors if name.endswith(end)]
            step = {name.removesuffix(end): update.tensors[name].to(hook.device) for name in names}
            self._apply(hook.layer, step)
            if "keys" in step and self._covariance is not None:
                self._remember(hook.layer, step["keys"])

    def reset(self) -> None:
        super().reset()
        for hook in self.hooks:
            hook.gate = self._gate()
            if self._covariance is not None:
                self._forget(hook.layer)

    @abstractmethod
    def _prepare(self) -> None:
        """Whatever the solves need of the covariance, per layer.

        Raises:
            CovarianceError: the covariance cannot be used.
        """

    @abstractmethod
    def _solve(self, layer: int, keys: Float[Tensor, "m u"]) -> Float[Tensor, "m u"]:
        """G of the layer's update Δ = R Gᵀ, float64, given the batch's keys."""

    def _remember(self, layer: int, keys: Float[Tensor, "m u"]) -> None:
        """Note a batch's keys for the solves of later batches."""

    def _forget(self, layer: int) -> None:
        """Forget all keys noted for a layer."""

    def _gate(self) -> Gate:
        return NoGate()

    def _compute(self, requests: Sequence[EditRequest]) -> Update:
        """One step, written on the hook layers as it goes up through them."""
        with self.hooks.modes("validated"):
            targets = self._targets(requests)
        with torch.no_grad(), self.hooks.modes("temporary"):
            tensors = self._write(self._key_prompts(requests), targets)
        return Update({name: tensor.cpu() for name, tensor in tensors.items()})

    def _key_prompts(self, requests: Sequence[EditRequest]) -> KeyPrompts:
        return KeyPrompts.encode(self.tokenizer, requests, self.prefixes, self.parts.input_device)

    def _targets(self, requests: Sequence[EditRequest]) -> Float[Tensor, "u d"]:
        layer, settings = self.config.layers[-1], self._target_settings(requests)
        return optimise_targets(self.parts, self.tokenizer, requests, layer, self.prefixes, settings).values

    def _target_settings(self, requests: Sequence[EditRequest]) -> TargetSettings:
        return self.config.targets

    def _write(self, prompts: KeyPrompts, targets: Float[Tensor, "u d"]) -> dict[str, Tensor]:
        """W_h += Δ, layer by layer, each layer's hook validated once it is written (temporary hooks elsewhere)."""
        layers = self.config.layers
        sweep = LayerSweep(self.parts, self.hooks, prompts, layers)
        tensors = {}
        for index, layer in enumerate(layers):
            prompt_keys = sweep.prompt_keys(layer)
            keys = prompts.combine(prompt_keys).T.contiguous()
            hidden = sweep.hidden(layer)
            residuals = (targets.to(hidden.device) - hidden) / (len(layers) - index)
            if layer in self._norms:
                norm = self._norms[layer]
                residuals = before_norm(norm, sweep.given(norm, layer), residuals)
            step = self._step(layer, keys, residuals.T.to(keys.device).contiguous())
            self._apply(layer, step)
            self._set_gate(layer, prompts.plain(prompt_keys), step)
            self.hooks[layer].mode = "validated"
            if self.remembers_keys:
                step["keys"] = keys
            tensors |= {f"{name}.{layer}": tensor for name, tensor in step.items()}
        return tensors

    def _step(self, layer: int, keys: Float[Tensor, "m u"], residuals: Float[Tensor, "d u"]) -> dict[str, Tensor]:
        """A layer's part of a step, as it is kept."""
        return smallest(residuals, self._solve(layer, keys).float().contiguous())

    def _apply(self, layer: int, step: dict[str, Tensor]) -> None:
        """W_h += Δ, from what is kept."""
        self.hooks[layer].add(kept_change(step))

    def _set_gate(self, layer: int, keys: Float[Tensor, "u m"], step: dict[str, Tensor]) -> None:
        """Fit a layer's gate to what was just written there, for the plain prompts' keys."""

    def _matrix(self, layer: int) -> Float[Tensor, "m m"]:
        """C0 of a layer, on the device of its weights."""
        return self._covariance.matrices[layer].to(self.parts.device(layer))

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


class MemitConfig(LocateConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

    covariance_weight: float = Field(20_000, gt=0, description="λ, weight of the covariance C0")


class MemitSolve(LocateThenEdit):
    """MEMIT's solve (Meng et al., 2023, eq. 14): Δ = R Kᵀ (λC0 + K Kᵀ)⁻¹, with past keys where they are remembered."""

    config_class = MemitConfig
    config: MemitConfig

    def _prepare(self) -> None:
        weight = self.config.covariance_weight
        self._solvers = {layer: RecursiveLeastSquares(self._matrix(layer), weight) for layer in self.config.layers}

    def _solve(self, layer: int, keys: Float[Tensor, "m u"]) -> Float[Tensor, "m u"]:
        return self._solvers[layer].gain(keys)
