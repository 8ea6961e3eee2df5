"""Hook layers: a second copy W_h of a rewrite module that answers beside the base weights, which are never written.

Legend: W0 base weight (d×m), W_h = W0 + ΔW, k input of the rewrite module. W_h is kept as ΔW in float32, dense or as
low-rank factors, so tiny updates are not rounded away against W0, and ΔW = 0 leaves the output bit for bit as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from coachhook.architectures import ModelParts, weight_matrix
from coachhook.changes import Change, add_in_order, dense
from coachhook.gates import Gate
from coachhook.low_rank import LowRank
from coachhook.switch import Switch
from coachhook.tracing import RewriteHook

Mode = Literal["off", "temporary", "validated"]


class HookLayer:
    """One hook layer: a forward hook on one rewrite module; all that is its own lies on the device of that module.

    `mode` "off" answers nowhere, "temporary" for every token, "validated" where the gate says so.

    Arguments:
        layer: index of the block.
        gate: decides for each token while the hook is validated.
        switch: answers nowhere while it is off, whatever the mode.
    """

    def __init__(self, parts: ModelParts, layer: int, gate: Gate, switch: Switch):
        self.layer, self._switch = layer, switch
        self.gate = gate
        self.mode: Mode = "validated"
        self._parts, self._shape = parts, parts.shape(layer)
        self._held_on = parts.device(layer)
        self._delta: Float[Tensor, "d m"] | None = None
        self._waiting: list[Change] = []
        self._gathers = False
        self.factors: LowRank | None = None  # of what `grow` added; it is never summed into `delta`
        self.real: Bool[Tensor, "batch time"] | None = None
        self.swaps: list[Bool[Tensor, "batch time"]] | None = None
        self._handle = RewriteHook(parts, layer, self._answer)

    @property
    def device(self) -> torch.device:
        """Where the rewrite module computes."""
        return self._parts.device(self.layer)

    @property
    def delta(self) -> Float[Tensor, "d m"] | None:
        """ΔW; None before the first step."""
        if self._waiting:
            changes, self._waiting = self._waiting, []
            start = torch.zeros(self._shape, device=self.device) if self._delta is None else self._delta
            self._delta = add_in_order(start, changes)
        return self._delta

    @delta.setter
    def delta(self, delta: Float[Tensor, "d m"] | None) -> None:
        self._waiting, self._delta = [], delta

    def add(self, change: Float[Tensor, "d m"] | Change) -> None:
        """W_h ← W_h + change."""
        self._hold_on(self.device)
        self._waiting.append(dense(change.float()) if isinstance(change, Tensor) else change)
        if not self._gathers:
            self.gather(False)

    def gather(self, gathers: bool) -> None:
        """Whether changes wait, to be added together; those that wait are added as soon as ΔW is looked at."""
        self._gathers = gathers
        if not gathers:
            _ = self.delta

    def grow(self, left: Float[Tensor, "d u"], right: Float[Tensor, "m u"]) -> None:
        """W_h ← W_h + left rightᵀ, kept as these factors."""
        self._hold_on(self.device)
        self.factors = (self.factors or LowRank()).grown(left, right)

    def dense(self) -> Float[Tensor, "d m"]:
        """ΔW, zeros before the first step."""
        self._hold_on(self.device)
        delta = torch.zeros(self._shape, device=self.device) if self.delta is None else self.delta
        return delta if self.factors is None else delta + self.factors.dense()

    def state(self) -> tuple[Tensor | None, LowRank | None, Gate]:
        """All that a step changes; see `restore`."""
        return self.delta, self.factors, self.gate

    def restore(self, state: tuple[Tensor | None, LowRank | None, Gate]) -> None:
        """Go back to an earlier `state`."""
        self.delta, self.factors, self.gate = state

    def reset(self) -> None:
        """W_h ← W0."""
        self.delta = self.factors = None

    def change(self, keys: Float[Tensor, "batch time m"]) -> Float[Tensor, "batch time d"]:
        """(W_h − W0) k in float32, for every token."""
        self._hold_on(keys.device)
        keys = keys.float()
        if self.factors is None:
            return keys @ (self.dense() if self.delta is None else self.delta).T
        change = self.factors.apply(keys)
        return change if self.delta is None else change + keys @ self.delta.T

    def nbytes(self) -> int:
        """Bytes of ΔW."""
        return sum(part.nbytes for part in (self.delta, self.factors) if part is not None)

    def remove(self) -> None:
        """Take the hook off its module."""
        self._handle.remove()

    @torch.no_grad()
    def merge(self) -> None:
        """W0 ← W0 + ΔW, rounded to W0's dtype once. Only ever for a copy of the user's model."""
        weight = weight_matrix(self._parts.rewrite_module(self.layer))
        weight.copy_(weight + self.dense())

    def _hold_on(self, device: torch.device) -> None:
        """Take all that is held along to where the model was moved."""
        if device == self._held_on:
            return
        self._held_on = device
        self.delta = None if self.delta is None else self.delta.to(device)
        self.factors = None if self.factors is None else self.factors.to(device)
        self.gate = self.gate.moved(device, self.factors)

    def _answer(self, keys: Float[Tensor, "batch time m"], output: Float[Tensor, "batch time d"]) -> Tensor | None:
        off = self.mode == "off" or not self._switch.on
        if off or (self.delta is None and self.factors is None):
            self._record(keys, False)
            return None
        self._hold_on(keys.device)
        if self.mode == "validated":
            real = None if self.real is None else self.real.to(keys.device)
            change, swap = self.gate.answer(self.change, keys, real)
        else:
            change, swap = self.change(keys), None
        # The sum is rounded to the model's dtype once; W_h k − W0 k in that dtype would lose small changes.
        edited = (output + change).to(output.dtype)
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
        self._switch = Switch()
        self._layers = {layer: HookLayer(parts, layer, gates[layer], self._switch) for layer in sorted(gates)}
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

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, no layer answers, whatever its mode and whichever thread asks."""
        return self._switch.off()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, what is added to the layers waits, and is added together at the end: many steps, much sooner."""
        for hook in self:
            hook.gather(True)
        try:
            yield
        finally:
            for hook in self:
                hook.gather(False)

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
        """Bytes of all ΔW and of what the gates keep besides."""
        return sum(hook.nbytes() + hook.gate.nbytes for hook in self)

    def close(self) -> None:
        """Remove all hooks."""
        self._handle.remove()
        for hook in self:
            hook.remove()

    def merge(self) -> None:
        """Write every ΔW into the weights of the model that the hooks are on, a copy, and remove all hooks."""
        self.close()
        for hook in self:
            hook.merge()

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
