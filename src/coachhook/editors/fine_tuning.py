"""FT-M: fine-tuning of rewrite modules on the targets' cross-entropy (Zhang et al., 2024, the EasyEdit survey).

The trained copy is a hook layer's ΔW, so the base weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from pydantic import Field

from coachhook.edit_request import EditRequest
from coachhook.editors.base import Method, MethodConfig, Update
from coachhook.gates import NoGate
from coachhook.hooks import HookLayers
from coachhook.tokens import encode, pad, pad_id


class FineTuningConfig(MethodConfig):
    """Hyper-parameters; defaults are EasyEdit's for GPT2-XL."""

    steps: int = Field(25, ge=1, description="Adam steps per batch")
    learning_rate: float = Field(5e-4, gt=0, description="Adam's learning rate")
    stop_loss: float = Field(1e-2, ge=0, description="a batch whose loss is below this is done")


class FineTuning(Method):
    """FT-M: each batch goes on training the same ΔW; its effect is everywhere (no gate)."""

    config_class = FineTuningConfig
    needs_covariance = False
    config: FineTuningConfig

    def __init__(self, model, tokenizer, config: FineTuningConfig, covariance=None):
        super().__init__(model, tokenizer, config, covariance)
        self.hooks = HookLayers(self.parts, {layer: NoGate() for layer in config.layers})

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        rows = [encode(self.tokenizer, request.text, request.target_new) for request in requests]
        batch = pad([row.ids for row in rows], pad_id(self.tokenizer), self.model.device)
        places = [(i, t) for i, row in enumerate(rows) for t in range(row.answer_start, len(row.ids))]
        index, time = torch.tensor(places, device=self.model.device).T
        before = {hook.layer: hook.dense().clone() for hook in self.hooks}
        trained = {layer: delta.clone().requires_grad_() for layer, delta in before.items()}
        for hook in self.hooks:
            hook.delta = trained[hook.layer]
        optimiser = torch.optim.Adam(trained.values(), lr=self.config.learning_rate)
        for _ in range(self.config.steps):
            hidden = self.parts.backbone(
                input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False
            ).last_hidden_state
            logits = self.parts.head(hidden[index, time - 1]).float()
            loss = torch.nn.functional.cross_entropy(logits, batch.ids[index, time])
            if loss < self.config.stop_loss:
                break
            gradients = torch.autograd.grad(loss, list(trained.values()))
            for parameter, gradient in zip(trained.values(), gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
        update = Update({f"delta.{layer}": (delta.detach() - before[layer]).cpu() for layer, delta in trained.items()})
        for hook in self.hooks:
            hook.delta = before[hook.layer]
        self.replay(update)
        return update

    def replay(self, update: Update) -> None:
        for hook in self.hooks:
            hook.add(update.tensors[f"delta.{hook.layer}"].to(hook.device))

    def reset(self) -> None:
        for hook in self.hooks:
            hook.reset()

    def disabled(self) -> AbstractContextManager[None]:
        return self.hooks.modes("off")

    def close(self) -> None:
        self.hooks.close()
