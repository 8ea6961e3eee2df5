"""MEND: a trained hypernetwork turns the fine-tuning gradient of an edit into the edit (Mitchell et al., ICLR 2022).

Legend: u input of a rewrite module (m), δ gradient of the loss at its output (d), both per token: the fine-tuning
gradient is Σ δ uᵀ. ũ, δ̃ what the hypernetwork makes of them; α_l learnt edit learning rate of layer l.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.changes import kept_change, smallest
from coachhook.edit_request import EditRequest
from coachhook.editors.answers import AnswerBatch
from coachhook.editors.base import HookLayerMethod, MethodConfig, TrainedMethod, Update
from coachhook.editors.mend_network import MendNetwork, MendTraining, TokenGradients
from coachhook.editors.trained_editor import TrainedEditorError, read_trained_editor
from coachhook.editors.training import train_editor
from coachhook.gates import NoGate
from coachhook.hooks import HookLayers
from coachhook.tracing import RewriteHook


class MendConfig(MethodConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

    edit_scale: float = Field(1.0, gt=0, description="factor on the learnt edit learning rates")


class Mend(HookLayerMethod, TrainedMethod):
    """ΔW_l ← ΔW_l − α_l Σ δ̃ ũᵀ over the tokens of a batch, the gradient being that of the model as edited so far."""

    config_class = MendConfig
    training_class = MendTraining
    paper = "Mitchell et al., ICLR 2022: Fast Model Editing at Scale"
    growing_state = "nothing"
    effect = "everywhere"
    config: MendConfig

    def __init__(self, model, tokenizer, config: MendConfig, covariance, trained_editor: str | os.PathLike):
        super().__init__(model, tokenizer, config, covariance, trained_editor)
        trained = read_trained_editor(trained_editor, type(self).__name__, model, config.layers)
        with torch.random.fork_rng(devices=[]):  # first weights are drawn even where others follow
            self.network = MendNetwork(self.parts, config.layers, MendTraining(**trained.training))
        self.network.load_state_dict(trained.network)
        self.network.requires_grad_(False).eval().to(self.parts.input_device)
        self.hooks = HookLayers(self.parts, {layer: NoGate() for layer in config.layers})

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        pairs = [(r.text, r.target_new) for r in requests]
        edits = AnswerBatch.encode(self.tokenizer, pairs, self.parts.input_device)
        gradients = token_gradients(self.parts, self.config.layers, edits)
        tensors: dict[str, Tensor] = {}
        with torch.no_grad():
            for layer, (left, right) in self.network.edits(gradients).items():
                kept = smallest(self.config.edit_scale * left, right)
                tensors |= {f"{name}.{layer}": tensor for name, tensor in kept.items()}
        update = Update({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        self.replay(update)
        return update

    def replay(self, update: Update) -> None:
        for hook in self.hooks:
            names = [name for name in ("left", "right", "delta") if f"{name}.{hook.layer}" in update.tensors]
            hook.add(kept_change({name: update.tensors[f"{name}.{hook.layer}"].to(hook.device) for name in names}))

    @classmethod
    def train(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: MendConfig,
        training: MendTraining,
        requests: Sequence[EditRequest],
        *,
        out: str | os.PathLike,
        checkpoint: str | os.PathLike,
        seed: int,
    ) -> None:
        if not any(request.locality for request in requests):
            raise TrainedEditorError("requests: none has a locality probe to train on; give them some")
        model.eval()
        parts = ModelParts(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = MendNetwork(parts, config.layers, training).to(parts.input_device)
        hooks = HookLayers(parts, {layer: NoGate() for layer in config.layers})
        rates = network.learning_rates
        groups = [
            {"params": [parameter for parameter in network.parameters() if parameter is not rates]},
            {"params": [rates], "lr": training.edit_learning_rate_step},
        ]
        loss = MendLoss(parts, tokenizer, network, hooks, training)
        files = {"out": out, "checkpoint": checkpoint, "seed": seed, "groups": groups}
        try:
            train_editor(cls.__name__, network, loss, model, config, training, requests, **files)
        finally:
            hooks.close()


class MendLoss:
    """c_edit · negative log-likelihood of the targets after the edit + c_loc · KL(base ‖ edited) on probes (eq. 4).

    A batch of requests is edited together; each target is asked for in one of the request's own wordings, prompt or
    paraphrase, and each request gives one probe. The divergence is taken before each token of the probe's answer.
    """

    def __init__(
        self,
        parts: ModelParts,
        tokenizer: PreTrainedTokenizerBase,
        network: MendNetwork,
        hooks: HookLayers,
        training: MendTraining,
    ):
        self._parts, self._tokenizer, self._network = parts, tokenizer, network
        self._hooks, self._training = hooks, training

    def __call__(self, requests: Sequence[EditRequest], rng: random.Random) -> Tensor:
        edits = self._encode([(r.text, r.target_new) for r in requests])
        asked = self._encode([(rng.choice((r.text, *r.paraphrase_texts)), r.target_new) for r in requests])
        drawn = [rng.choice(r.locality) for r in requests if r.locality]
        probes = self._encode([(probe.prompt, probe.answer) for probe in drawn]) if drawn else None
        with self._hooks.modes("off"):
            gradients = token_gradients(self._parts, self._network.layers, edits)
            with torch.no_grad():
                base = probes.log_probabilities(self._parts) if probes else None
        if self._network.training:
            self._network.observe(gradients)
        for layer, (left, right) in self._network.edits(gradients).items():
            hook = self._hooks[layer]
            hook.delta = left.to(hook.device) @ right.to(hook.device).T
        try:
            loss = self._training.edit_weight * asked.losses(asked.log_probabilities(self._parts)).mean()
            if probes:
                divergence = (base.exp() * (base - probes.log_probabilities(self._parts))).sum(-1)
                loss = loss + self._training.locality_weight * probes.row_means(divergence).mean()
        finally:
            for hook in self._hooks:
                hook.reset()
        return loss

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> AnswerBatch:
        return AnswerBatch.encode(self._tokenizer, pairs, self._parts.input_device)


def token_gradients(parts: ModelParts, layers: Sequence[int], edits: AnswerBatch) -> TokenGradients:
    """u and δ of the loss summed over requests, so that a request's own do not depend on the size of its batch.

    They are where the batch is, whatever the layers' own devices.
    """
    inputs: dict[int, Tensor] = {}
    probes: dict[int, Tensor] = {}

    def add_zeros(layer: int):
        def hook(keys: Tensor, output: Tensor) -> Tensor:
            inputs[layer] = keys.detach().float()
            probes[layer] = torch.zeros_like(output, requires_grad=True)
            return output + probes[layer]

        return hook

    handles = [RewriteHook(parts, layer, add_zeros(layer)) for layer in layers]
    try:
        with torch.enable_grad():
            total = edits.losses(edits.log_probabilities(parts)).sum()
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(total, [probes[layer] for layer in layers])
    found, device = {}, edits.row.device
    for layer, gradient in zip(layers, gradients, strict=True):
        reached = gradient.abs().amax(-1) > 0  # not padding, nor tokens that no answer depends on
        found[layer] = inputs[layer][reached].to(device), gradient[reached].float().to(device)
    return found
