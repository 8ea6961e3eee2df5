"""FT-M and FT-L: fine-tuning of rewrite modules on each batch's targets.

The trained copy is a hook layer's ΔW, so the base weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.edit_request import EditRequest
from coachhook.editors.answers import AnswerBatch
from coachhook.editors.base import HookLayerMethod, MethodConfig, Update
from coachhook.gates import NoGate
from coachhook.hooks import HookLayers
from coachhook.progress import tell

Objective = Literal["target", "last_prompt_token"]


class TargetLoss:
    """Negative log-likelihood of a batch's targets in nats, as the model stands when it is called.

    "target": each token after those before it, the mean over all tokens of the batch. "last_prompt_token": all tokens
    from the prompt's last one, per request the mean over its tokens, and the mean over requests.
    """

    def __init__(
        self,
        parts: ModelParts,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        objective: Objective = "target",
    ):
        self._parts, self._objective = parts, objective
        pairs = [(request.text, request.target_new) for request in requests]
        self._batch = AnswerBatch.encode(tokenizer, pairs, parts.input_device)
        if objective == "last_prompt_token":  # the target stands behind it, where it is not seen
            starts = torch.tensor(self._batch.starts, device=parts.input_device)
            self._batch = replace(self._batch, time=starts[self._batch.row] - 1)

    def __call__(self) -> Float[Tensor, ""]:
        scores = self._batch.log_probabilities(self._parts)
        if self._objective == "last_prompt_token":
            return self._batch.losses(scores).mean()
        return -scores.gather(1, self._batch.token[:, None]).mean()


def minimise(
    loss: Callable[[], Float[Tensor, ""]],
    parameters: Sequence[Tensor],
    *,
    steps: int,
    learning_rate: float,
    stop_loss: float,
    project: Callable[[], None] | None = None,
) -> None:
    """Change `parameters` by at most `steps` steps of Adam; done as soon as the loss is below `stop_loss`.

    Nothing but `parameters` gets a gradient, whatever else of the model requires one.

    Arguments:
        project: called after each step, to put the parameters back where they may be.
    """
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    for step in range(steps):
        tell("training", step, steps)
        value = loss()
        if value < stop_loss:
            break
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.grad = gradient
        optimiser.step()
        if project is not None:
            project()
    optimiser.zero_grad()


class FineTuningConfig(MethodConfig):
    """Hyper-parameters; defaults are EasyEdit's for GPT2-XL."""

    loss: Objective = Field(
        "target", description="target: cross-entropy; last_prompt_token: all target tokens from the prompt's last one"
    )
    steps: int = Field(25, ge=1, description="Adam steps per batch")
    learning_rate: float = Field(5e-4, gt=0, description="Adam's learning rate")
    stop_loss: float = Field(1e-2, ge=0, description="a batch whose loss is below this is done")
    norm_constraint: float | None = Field(
        None, gt=0, description="no batch moves an element of W further than this; null for no limit"
    )


class FineTuning(HookLayerMethod):
    """Each batch goes on training the same ΔW, with a fresh Adam; its effect is everywhere (no gate)."""

    config_class = FineTuningConfig
    growing_state = "nothing"
    effect = "everywhere"
    config: FineTuningConfig

    def __init__(self, model, tokenizer, config: FineTuningConfig, covariance=None):
        super().__init__(model, tokenizer, config, covariance)
        self.hooks = HookLayers(self.parts, {layer: NoGate() for layer in config.layers})

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        stored = {hook: hook.delta for hook in self.hooks}
        before = {hook.layer: hook.dense() for hook in self.hooks}
        trained = {layer: delta.clone().requires_grad_() for layer, delta in before.items()}
        for hook in self.hooks:
            hook.delta = trained[hook.layer]
        try:
            self._train(requests, before, trained)
        finally:
            for hook, delta in stored.items():
                hook.delta = delta
        update = Update({f"delta.{layer}": (delta.detach() - before[layer]).cpu() for layer, delta in trained.items()})
        self.replay(update)
        return update

    def replay(self, update: Update) -> None:
        for hook in self.hooks:
            hook.add(update.tensors[f"delta.{hook.layer}"].to(hook.device))

    def _train(self, requests: Sequence[EditRequest], before: dict[int, Tensor], trained: dict[int, Tensor]) -> None:
        config, limit = self.config, self.config.norm_constraint

        @torch.no_grad()
        def clamp() -> None:
            for layer, delta in trained.items():
                delta.copy_(delta.clamp(before[layer] - limit, before[layer] + limit))

        minimise(
            TargetLoss(self.parts, self.tokenizer, requests, config.loss),
            list(trained.values()),
            steps=config.steps,
            learning_rate=config.learning_rate,
            stop_loss=config.stop_loss,
            project=None if limit is None else clamp,
        )


class FtM(FineTuning):
    """FT-M: ordinary cross-entropy on the target's tokens."""

    paper = "Zhang et al., 2024: A Comprehensive Study of Knowledge Editing for Large Language Models"


class FtLConfig(FineTuningConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

    loss: Objective = Field("last_prompt_token", description=FineTuningConfig.model_fields["loss"].description)
    norm_constraint: float | None = Field(
        5e-4, gt=0, description=FineTuningConfig.model_fields["norm_constraint"].description
    )


class FtL(FineTuning):
    """FT-L: all target tokens from the prompt's last one, each element held near its value before the batch.

    ROME's baseline, with the L∞ constraint of Zhu et al. (2020, Modifying Memories in Transformer Models). A target of
    several tokens can therefore not be learnt as a sequence: one distribution is to give all of them.
    """

    config_class = FtLConfig
    paper = "Meng et al., NeurIPS 2022: Locating and Editing Factual Associations in GPT"
