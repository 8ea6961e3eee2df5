"""Residuals where a norm stands behind the rewrite module (Gemma 2 and 3, OPT-350M): what to ask of the module itself.

Elsewhere a block adds its rewrite module's output v as it is, so a change R of the block's output is R at v too.
Legend: x what the norm is given, v or a sum with v; N(x) = g ⊙ u(x) + b the norm; u(x) has mean square 1 (and mean 0 in
a LayerNorm), so whatever W is, N(x) stays on one ellipsoid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from coachhook.architectures import ArchitectureError, ModelParts
from coachhook.tracing import BlockInputs, RewriteHook, block_inputs

_TOLERANCE = 0.05  # half precision rounds a block's output to within about 1 % of what is added to it
_KEPT = 0.01  # ε by the mean g²: features with less than a tenth of the usual gain hardly follow R


@torch.no_grad()
def norms_behind(parts: ModelParts, layers: Sequence[int]) -> dict[int, nn.Module]:
    """The norm between rewrite module and block output, for those of `layers` that have one.

    Found out by running each block with the rewrite module's output moved, not by name.

    Raises:
        ArchitectureError: a block neither adds its rewrite module's output as it is nor puts it through one norm.
    """
    start = parts.model.get_input_embeddings().weight.shape[0] // 2  # the first ids may be special
    ids = torch.arange(start, start + 3, device=parts.input_device)[None]
    with block_inputs(parts, layers) as calls:
        parts.backbone(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    found = {layer: _norm_behind(parts, layer, calls[layer]) for layer in layers}
    return {layer: norm for layer, norm in found.items() if norm is not None}


def before_norm(norm: nn.Module, given: Float[Tensor, "u d"], change: Float[Tensor, "u d"]) -> Float[Tensor, "u d"]:
    """The change of x, of mean and mean square kept, that brings N(x) near N(x) + R.

    With u' for u(x + change): ‖N(x + change) − N(x) − R‖² + ε ‖u' − u‖² is least, so features that N hardly passes on
    stay where they are.

    Arguments:
        given: x.
        change: R.
    """
    gain, _, centred = _affine(norm, given)
    x = given.double()
    mean = x.mean(-1, keepdim=True) if centred else torch.zeros_like(x[:, :1])
    size = (x - mean).square().mean(-1, keepdim=True).sqrt()
    return (mean + size * _nearest(gain, (x - mean) / size, change.double(), centred) - x).float()


def _nearest(
    gain: Float[Tensor, " d"], unit: Float[Tensor, "u d"], change: Float[Tensor, "u d"], centred: bool
) -> Float[Tensor, "u d"]:
    """u' of mean square 1 (and mean 0 if `centred`) that minimises ‖g ⊙ (u' − u) − R‖² + ε ‖u' − u‖².

    u' = ((g² + ε) ⊙ u + g ⊙ R) / (g² + μ), the multiplier μ of the mean square found by bisection.
    """
    squares = gain.square()
    pulled = (squares + _KEPT * squares.mean()) * unit + gain * change

    def at(multiplier: Tensor) -> Tensor:
        weight = 1 / (squares + multiplier)
        if not centred:
            return pulled * weight
        return (pulled - (pulled * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)) * weight

    low = torch.full_like(unit[:, :1], -0.999 * squares.min().item())
    high = pulled.norm(dim=-1, keepdim=True) / unit.shape[-1] ** 0.5  # the mean square is at most 1 from here on
    for _ in range(60):
        middle = (low + high) / 2
        outside = at(middle).square().mean(-1, keepdim=True) > 1
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    nearest = at(high)
    return nearest / nearest.square().mean(-1, keepdim=True).sqrt()


def _affine(norm: nn.Module, like: Float[Tensor, "... d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], bool]:
    """g, b, and whether the mean is taken off, float64, as the norm itself shows them (Gemma keeps g − 1)."""
    ones = torch.ones(like.shape[-1], device=like.device)
    signs = ones.clone()
    signs[1::2] = -1  # mean 0, mean square 1
    dtype = next((parameter.dtype for parameter in norm.parameters()), torch.float32)
    shift, flat, alternating = norm(torch.stack([0 * ones, ones, signs]).to(dtype)).double()
    gain = (alternating - shift) * signs
    return gain, shift, bool((flat - shift).norm() < gain.norm() / 2)


def _norm_behind(parts: ModelParts, layer: int, call: BlockInputs) -> nn.Module | None:
    before, given = _run(parts, layer, call, None)
    drawn = torch.randn(before.shape, generator=torch.Generator().manual_seed(layer)).to(before.device)
    offset = drawn * before.square().mean().sqrt()
    after, _ = _run(parts, layer, call, offset)
    change = after - before
    if _close(change, offset):
        return None
    for norm, x in given.items():
        x = x.view(before.shape)
        dtype = call.hidden.dtype
        predicted = norm((x + offset).to(dtype)).float() - norm(x.to(dtype)).float()
        if _close(predicted, change) and _is_ellipsoid(norm, x):
            return norm
    name = parts.architecture.rewrite_module
    raise ArchitectureError(
        f"rewrite_module: block {layer} does not add what its {name} gives to the hidden states, nor a norm of it "
        f"(moved by {offset.norm():.3g}, it moves by {change.norm():.3g}); declare the MLP's last projection"
    )


def _run(
    parts: ModelParts, layer: int, call: BlockInputs, offset: Tensor | None
) -> tuple[Float[Tensor, "batch time d"], dict[nn.Module, Tensor]]:
    """The block's output, and what the norms that run behind its rewrite module are given."""
    block, given, passed = parts.blocks[layer], {}, []

    def move(keys: Tensor, output: Tensor) -> Tensor | None:
        passed.append(True)
        return None if offset is None else output + offset.to(output)

    def note(norm: nn.Module, args: tuple) -> None:
        if passed:
            given[norm] = args[0].float()

    handles = [RewriteHook(parts, layer, move)]
    norms = [module for module in block.modules() if "norm" in type(module).__name__.lower()]
    handles += [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        return call.run(block, call.hidden).float(), given
    finally:
        for handle in handles:
            handle.remove()


def _is_ellipsoid(norm: nn.Module, x: Float[Tensor, "batch time d"]) -> bool:
    """Whether N(x) = g ⊙ u(x) + b with what `_affine` found."""
    gain, shift, centred = _affine(norm, x)
    spread = x.double() - (x.double().mean(-1, keepdim=True) if centred else 0)
    unit = spread / spread.square().mean(-1, keepdim=True).sqrt()
    dtype = next((parameter.dtype for parameter in norm.parameters()), torch.float32)
    return _close(norm(x.to(dtype)).double(), gain * unit + shift)


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= _TOLERANCE * expected.norm())
