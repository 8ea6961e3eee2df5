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

from coachhook.architectures import ModelParts
from coachhook.gates import Gate
from coachhook.tracing import RewriteHook

Mode = Literal["off", "temporary", "validated"]


class HookLayer:
    """One hook layer: a forward hook on one rewrite module; all that is its own lies on the device of that module.

    `mode` "off" answers nowhere, "temporary" for every token, "validated" where the gate says so.

    Arguments:
        layer: index of the block.
        gate: decides for each token while the hook is validated.
    """

    def __init__(self, parts: ModelParts, layer: int, gate: Gate):
        self.layer = layer
        self.gate = gate
        self.mode: Mode = "validated"
        self._shape = parts.shape(layer)
        self.device = parts.device(layer)
        self.delta: Float[Tensor, "d m"] | None = None
        self.real: Bool[Tensor, "batch time"] | None = None
        self.swaps: list[Bool[Tensor, "batch time"]] | None = None
        self._handle = RewriteHook(parts, layer, self._answer)

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

    def _answer(self, keys: Float[Tensor, "batch time m"], output: Float[Tensor, "batch time d"]) -> Tensor | None:
        if self.mode == "off" or self.delta is None:
            self._record(keys, False)
            return None
        change = self.change(keys)
        # The sum is rounded to the model's dtype once; W_h k − W0 k in that dtype would lose small changes.
        edited = (output + change).to(output.dtype)
        real = None if self.real is None else self.real.to(change.device)
        swap = self.gate.swap(change, real) if self.mode == "validated" else None
        self._record(keys, True if swap is None else swap)
        if swap is None:
            return edited
        return torch.where(swap[..., None], edited, output)

    def _record(self, keys: Float[Tensor, "batch time m"], swap: Bool[Tensor, "batch time"] | bool) -> None:
        if self.swaps is not None:
            self.swaps.append(swap & torch.ones(keys.shape[:-1], dtype=torch.bool, device=keys.device))

    def __repr__(self) -> str:
        return f"HookLayer(layer={self.layer}, mode={self.mode!r}, gate={self.gate!r})"


class HookLayers:
    """All hook layers of one model, in ascending order; `close()` leaves no trace on the model.

    The attention mask of every call of the model is handed to the gates, so padding never counts as text.
    """

    def __init__(self, parts: ModelParts, gates: dict[int, Gate]):
        for layer in gates:
            parts.rewrite_module(layer)  # refuses before any hook is set
        self._layers = {layer: HookLayer(parts, layer, gates[layer]) for layer in sorted(gates)}
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

    @contextmanager
    def recorded_swaps(self) -> Iterator[dict[int, list[Bool[Tensor, "batch time"]]]]:
        """Inside, what every layer decides: per layer one mask per call of the model, True where W_h answered."""
        found: dict[int, list[Tensor]] = {hook.layer: [] for hook in self}
        before = {hook: hook.swaps for hook in self}
        for hook in self:
            hook.swaps = found[hook.layer]
        try:
            yield found
        finally:
            for hook, earlier in before.items():
                hook.swaps = earlier

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
    if not isinstance(mask, Tensor) or mask.ndim != 2:  # `generate` may hand over ready-made masks per kind of layer
        return None
    inputs = kwargs.get("input_ids", args[0] if args else None)
    inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
    # With a cache the mask also covers earlier tokens; the hooks see only the last ones.
    return mask[:, -inputs.shape[1] :].bool()
