"""MEND's hypernetwork (Mitchell et al., ICLR 2022, section 3), and the hyper-parameters of its training.

Legend: u input of a rewrite module (m), δ gradient of the loss at its output (d), both per token; ũ, δ̃ what the
hypernetwork makes of them; α_l learnt edit learning rate of layer l.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from coachhook.architectures import ModelParts
from coachhook.editors.training import EditorTraining

_TINY = 1e-7  # added to standard deviations, as in the released code

TokenGradients = dict[int, tuple[Float[Tensor, "n m"], Float[Tensor, "n d"]]]
"""Per layer u and δ of the n tokens that have a gradient."""


class MendTraining(EditorTraining):
    """Hyper-parameters of the training; defaults are the published ones for GPT2-XL."""

    rank: int = Field(1920, ge=1, description="rank of the hypernetwork's two maps")
    edit_learning_rate: float = Field(1e-4, gt=0, description="first value of the edit learning rates α")
    edit_learning_rate_step: float = Field(1e-4, gt=0, description="Adam's learning rate for α itself")
    edit_weight: float = Field(0.1, gt=0, description="weight of the edit loss (c_edit)")
    locality_weight: float = Field(1.0, ge=0, description="weight of the divergence on locality probes (c_loc)")


class MendNetwork(nn.Module):
    """The hypernetwork: z = [u; δ], normalised, goes through two low-rank residual maps to [ũ; δ̃] (eq. 3).

    The layers' rewrite modules have one shape, so they share it; each has its own statistics of z, scales, shifts
    and α. As in the released code the second map is linear, and ũ, δ̃ stay in normalised units.
    """

    def __init__(self, parts: ModelParts, layers: Sequence[int], training: MendTraining):
        super().__init__()
        outputs, self._inputs = parts.shape(layers[0])
        width = self._inputs + outputs
        self.layers = tuple(layers)
        self.statistics = nn.ModuleList(RunningStatistics(width) for _ in layers)
        self.first = LowRankResidual(width, training.rank, len(layers), rectified=True)
        self.second = LowRankResidual(width, training.rank, len(layers), rectified=False)
        self.learning_rates = nn.Parameter(torch.full((len(layers),), training.edit_learning_rate))

    def observe(self, gradients: TokenGradients) -> None:
        """Add a batch to the statistics."""
        for index, layer in enumerate(self.layers):
            self.statistics[index].observe(torch.cat(gradients[layer], -1))

    def edits(self, gradients: TokenGradients) -> dict[int, tuple[Float[Tensor, "d n"], Float[Tensor, "m n"]]]:
        """Per layer the factors of its edit: ΔW = −α Σ δ̃ ũᵀ = left rightᵀ."""
        factors = {}
        for index, layer in enumerate(self.layers):
            z = self.statistics[index].normalise(torch.cat(gradients[layer], -1))
            changed = self.second(self.first(z, index), index)
            inputs, outputs = changed[:, : self._inputs], changed[:, self._inputs :]
            factors[layer] = -self.learning_rates[index] * outputs.T, inputs.T
        return factors


class RunningStatistics(nn.Module):
    """Mean and deviation of each feature over all tokens seen (Chan et al., 1979)."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    @torch.no_grad()
    def observe(self, tokens: Float[Tensor, "n width"]) -> None:
        before, count, mean = int(self.count), len(tokens), tokens.mean(0)
        difference = mean - self.mean
        self.squares += (tokens - mean).square().sum(0) + difference.square() * (before * count / (before + count))
        self.mean += difference * (count / (before + count))
        self.count += count

    def normalise(self, tokens: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """(x − mean) / standard deviation."""
        deviation = (self.squares / (self.count - 1).clamp_min(1)).sqrt()
        return (tokens - self.mean) / (deviation + _TINY)


class LowRankResidual(nn.Module):
    """x + σ(s_l ⊙ (U V x + b) + o_l), the identity at first; σ rectifies or is the identity."""

    def __init__(self, width: int, rank: int, layers: int, rectified: bool):
        super().__init__()
        rank = min(rank, width)
        self.rectified = rectified
        self.left = nn.Parameter(torch.zeros(width, rank))
        self.right = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, width)))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(layers, width))
        self.shift = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x: Float[Tensor, "n width"], layer: int) -> Float[Tensor, "n width"]:
        change = self.scale[layer] * (x @ self.right.T @ self.left.T + self.bias) + self.shift[layer]
        # clamp passes the gradient at zero, where training starts; relu would not.
        return x + (change.clamp_min(0) if self.rectified else change)
