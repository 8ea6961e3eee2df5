"""Hook layers: a second copy W_h of a rewrite module that answers beside the base weights, which are never written.

Legend: W0 base weight (d×m), W_h = W0 + ΔW, k input of the rewrite module. W_h is kept as ΔW in float32, so tiny
updates are not rounded away against W0, and ΔW = 0 leaves the module's output bit for bit as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from coachhook.architectures import ModelParts, weight_matrix
from coachhook.gates import Gate

Mode = Literal["off", "temporary", "validated"]


class HookLayer:
    """One hook layer: a forward hook on one rewrite module.

    `mode` "off" answers nowhere, "temporary" for every token, "validated" where the gate says so.

    Arguments:
        layer: index of the block.
        module: its rewrite module.
        gate: decides for each token while the hook is validated.
    """

    def __init__(self, layer: int, module: nn.Module, gate: Gate):
        self.layer = layer
        self.gate = gate
        self.mode: Mode = "validated"
        weight = weight_matrix(module)
        self._shape = tuple(weight.shape)
        self.device = weight.device
        self.delta: Float[Tensor, "d m"] | None = None
        self.real: Bool[Tensor, "batch time"] | None = None
        self._handle = module.register_forward_hook(self._answer)

    def add(self, update: Float[Tensor, "d m"]) -> None:
        """W_h ← W_h + update."""
        self.delta = self.dense() + update.float()

    def dense(self) -> Float[Tensor, "d m"]:
        """ΔW, zeros before the first step."""
        return torch.zeros(self._shape, device=self.device) if self.delta is None else self.delta

    def reset(self) -> None:
        """W_h ← W0."""
        self.delta = None

    def change(self, keys: Float[Tensor, "batch time m"]) -> Float[Tensor, "batch time d"]:
        """(W_h − W0) k in float32, for every token."""
        return keys.float() @ self.dense().T

    def remove(self) -> None:
        """Take the hook off its module."""
        self._handle.remove()

    def _answer(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.mode == "off" or self.delta is None:
            return None
        change = self.change(args[0])
        edited = (output + change).to(output.dtype)
        swap = self.gate.swap(change, self.real) if self.mode == "validated" else None
        if swap is None:
            return edited
        return torch.where(swap[..., None], edited, output)

    def __repr__(self) -> str:
        return f"HookLayer(layer={self.layer}, mode={self.mode!r}, gate={self.gate!r})"


class HookLayers:
    """All hook layers of one model, in ascending order; `close()` leaves no trace on the model.

    The attention mask of every call of the model is handed to the gates, so padding never counts as text.
    """

    def __init__(self, parts: ModelParts, gates: dict[int, Gate]):
        modules = {layer: parts.rewrite_module(layer) for layer in sorted(gates)}  # refuses before any hook is set
        self._layers = {layer: HookLayer(layer, module, gates[layer]) for layer, module in modules.items()}
        self._handle = parts.backbone.register_forward_pre_hook(self._see_mask, with_kwargs=True)

    def __getitem__(self, layer: int) -> HookLayer:
        return self._layers[layer]

    def __iter__(self) -> Iterator[HookLayer]:
        return iter(self._layers.values())

    @contextmanager
    def modes(self, mode: Mode) -> Iterator[None]:
        """Every layer in `mode`; the earlier modes come back at the end."""
        before = {hook: hook.mode for hook in self}
        for hook in self:
            hook.mode = mode
        try:
            yield
        finally:
            for hook, earlier in before.items():
                hook.mode = earlier

    def see(self, real: Bool[Tensor, "batch time"] | None) -> None:
        """Tell the gates which tokens are real, for blocks that are run without the whole model."""
        for hook in self:
            hook.real = real

    def state_bytes(self) -> int:
        """Bytes of all ΔW."""
        return sum(hook.delta.nbytes for hook in self if hook.delta is not None)

    def close(self) -> None:
        """Remove all hooks."""
        self._handle.remove()
        for hook in self:
            hook.remove()

    def _see_mask(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.see(real_tokens(args, kwargs))

    def __repr__(self) -> str:
        return f"HookLayers({list(self)!r})"


def real_tokens(args: tuple, kwargs: dict) -> Bool[Tensor, "batch time"] | None:
    """Which tokens of a call of the backbone are no padding; None where it was given no plain attention mask."""
    mask = kwargs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return None
    inputs = kwargs.get("input_ids", args[0] if args else None)
    inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
    # With a cache the mask also covers earlier tokens; the hooks see only the last ones.
    return mask[:, -inputs.shape[1] :].bool()
