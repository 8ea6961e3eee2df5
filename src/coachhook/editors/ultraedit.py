"""UltraEdit: one backward pass gives each token a wanted change of output; ridge regression on raw keys writes it.

Legend: h key (m) and g gradient of the loss by the module's output (d), at each of n target tokens; H (n×m) raw keys;
ĥ, ĝ standardised by the mean and deviation over all tokens so far; V (n×d) wanted changes; ΔW (d×m).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from coachhook.changes import product
from coachhook.devices import at
from coachhook.edit_request import EditRequest
from coachhook.editors.answers import AnswerBatch
from coachhook.editors.base import HookLayerMethod, MethodConfig, Update
from coachhook.gates import NoGate
from coachhook.hooks import HookLayers
from coachhook.tokens import batches_by_length, encode_answers
from coachhook.tracing import RewriteHook

_MAX_TOKENS = 4096  # per backward pass; the sums over tokens do not depend on it
_EPSILON = torch.finfo(torch.float32).eps


class UltraEditConfig(MethodConfig):
    """Hyper-parameters; the default is the published one for GPT-J (GPT2-XL was not published)."""

    learning_rate: float = Field(1e-6, gt=0, description="η, scale of the wanted changes")


@dataclass(frozen=True)
class RunningMoments:
    """Mean and sum of squared deviations, per feature, of all rows so far; float64."""

    count: int
    mean: Float[Tensor, " features"]
    squares: Float[Tensor, " features"]

    @classmethod
    def empty(cls, features: int, device: torch.device) -> RunningMoments:
        zeros = torch.zeros(features, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros)

    def including(self, rows: Float[Tensor, "n features"]) -> RunningMoments:
        """The moments of the rows so far and these (Chan et al., 1979)."""
        rows = rows.double()
        count, mean = self.count + len(rows), rows.mean(0)
        shift = mean - self.mean
        squares = (rows - mean).square().sum(0) + shift.square() * (self.count * len(rows) / count)
        return RunningMoments(count, self.mean + shift * (len(rows) / count), self.squares + squares)

    def standardise(self, rows: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
        """(x − mean) / (unbiased deviation + 1.2e-7); zeros where the moments are of one row only."""
        deviation = (self.squares / max(self.count - 1, 1)).sqrt()
        return (rows.double() - self.mean) / (deviation + _EPSILON)


def ridge_update(
    keys: Float[Tensor, "n m"], values: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r m"]] | tuple[Float[Tensor, "d m"]]:
    """Δ of Δᵀ = (HᵀH + I)⁻¹ Hᵀ V, float64, as two factors where these are smaller than Δ.

    With fewer tokens than m the equal form Hᵀ (H Hᵀ + I)⁻¹ V is solved, n×n instead of m×m.
    """
    keys, values = keys.double(), values.double()
    (tokens, width), depth = keys.shape, values.shape[1]
    identity = torch.eye(min(tokens, width), dtype=torch.float64, device=keys.device)
    if tokens >= width:
        return (torch.linalg.solve(keys.T @ keys + identity, keys.T @ values).T,)
    left = torch.linalg.solve(keys @ keys.T + identity, values).T
    return (left, keys) if tokens * (width + depth) < width * depth else (left @ keys,)


class UltraEdit(HookLayerMethod):
    """All layers from one pass: v = −η ‖ĥ‖² ĝ per target token, Δᵀ = (HᵀH + I)⁻¹ Hᵀ V, W_h += Δ.

    A stream's very first batch changes nothing if it has one target token in all: its standardised values are zero.
    """

    config_class = UltraEditConfig
    paper = "Gu et al., TMLR 2026: UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models"
    growing_state = "nothing"
    effect = "everywhere"
    config: UltraEditConfig

    def __init__(self, model, tokenizer, config: UltraEditConfig, covariance=None):
        super().__init__(model, tokenizer, config, covariance)
        self.hooks = HookLayers(self.parts, {layer: NoGate() for layer in config.layers})
        self.reset()

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        tensors, tokens = {}, 0
        for layer, (keys, gradients) in self._observe(requests).items():
            moments = self._moments[layer].including(torch.cat([keys, gradients], 1))
            standard = moments.standardise(torch.cat([keys, gradients], 1))
            h, g = standard.split([keys.shape[1], gradients.shape[1]], 1)
            wanted = -self.config.learning_rate * h.square().sum(1, keepdim=True) * g
            factors = ridge_update(keys, wanted)
            tensors |= {f"factor{i}.{layer}": factor.float().contiguous() for i, factor in enumerate(factors)}
            tensors |= {f"mean.{layer}": moments.mean, f"squares.{layer}": moments.squares}
            tokens = moments.count
        update = Update({name: tensor.cpu() for name, tensor in tensors.items()}, {"tokens": tokens})
        self.replay(update)
        return update

    def replay(self, update: Update) -> None:
        for hook in self.hooks:
            names = [name for i in range(2) if (name := f"factor{i}.{hook.layer}") in update.tensors]
            factors = [update.tensors[name].to(hook.device) for name in names]
            hook.add(factors[0] if len(factors) == 1 else product(factors[0], factors[1].T))
            mean, squares = (update.tensors[f"{name}.{hook.layer}"].to(hook.device) for name in ("mean", "squares"))
            self._moments[hook.layer] = RunningMoments(update.info["tokens"], mean, squares)

    def reset(self) -> None:
        super().reset()
        self._moments = {hook.layer: RunningMoments.empty(sum(hook.dense().shape), hook.device) for hook in self.hooks}

    def _observe(self, requests: Sequence[EditRequest]) -> dict[int, tuple[Tensor, Tensor]]:
        """h (n×m) and g (n×d) of each layer, at the places whose logits are to give a target token.

        The loss is the sum of the target tokens' negative log-likelihoods: a factor of the loss cancels in ĝ, and
        with the sum no token's g depends on the requests beside it.
        """
        seen: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in self.config.layers}
        pairs = [(request.text, request.target_new) for request in requests]
        lengths = [len(row.ids) for row in encode_answers(self.tokenizer, pairs)]
        for group in batches_by_length(lengths, _MAX_TOKENS):
            batch = AnswerBatch.encode(self.tokenizer, [pairs[i] for i in group], self.parts.input_device)
            with self._recording() as (keys, offsets):
                scores = batch.log_probabilities(self.parts).gather(1, batch.token[:, None])
            gradients = torch.autograd.grad(-scores.sum(), [offsets[layer] for layer in self.config.layers])
            for layer, gradient in zip(self.config.layers, gradients, strict=True):
                places = batch.row, batch.time
                seen[layer].append((at(keys[layer], *places).detach(), at(gradient, *places)))
        return {layer: tuple(map(torch.cat, zip(*pairs, strict=True))) for layer, pairs in seen.items()}

    @contextmanager
    def _recording(self) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
        """Record the rewrite modules' inputs, and add to their outputs zeros, whose gradient is that of the output."""
        keys: dict[int, Tensor] = {}
        offsets: dict[int, Tensor] = {}

        def hook(layer: int):
            def record(given: Tensor, output: Tensor) -> Tensor:
                keys[layer] = given
                offsets[layer] = torch.zeros_like(output, requires_grad=True)
                return output + offsets[layer]

            return record

        # Registered behind the hook layers' own, so the outputs are those with the edits.
        handles = [RewriteHook(self.parts, layer, hook(layer)) for layer in self.config.layers]
        try:
            yield keys, offsets
        finally:
            for handle in handles:
                handle.remove()
