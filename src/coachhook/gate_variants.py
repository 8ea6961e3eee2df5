"""The same ΔW behind other gates: the leverage ℓ(k) at other thresholds, ρ(k) = ‖ΔW k‖/‖k‖ under ℓ's calibration,
other sharpness of retrieval or none, no gate, one threshold for all layers, and gates at some layers only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coachhook.gates import Gate, NoGate
from coachhook.hooks import HookLayer
from coachhook.leverage import LeverageGate, background_quantile

FRACTIONS = (0.3, 0.5, 0.7, 0.8, 0.9)
RATES = (0.02, 0.05, 0.1)
SHARPNESS = (5, 10, 20, 40, 80)


@dataclass(frozen=True)
class RatioGate(Gate):
    """W_h answers where ρ(k) = ‖ΔW k‖/‖k‖ ≥ τ, and answers as behind `other`."""

    threshold: float
    other: LeverageGate

    def swap(
        self,
        change: Float[Tensor, "batch time d"],
        real: Bool[Tensor, "batch time"] | None = None,
        keys: Float[Tensor, "batch time m"] | None = None,
    ) -> Bool[Tensor, "batch time"]:
        return change.norm(dim=-1) / keys.float().norm(dim=-1) >= self.threshold

    def answer(
        self,
        change: Callable[[Tensor], Tensor],
        keys: Float[Tensor, "batch time m"],
        real: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time d"], Bool[Tensor, "batch time"]]:
        return self.other.answer(change, keys)[0], self.swap(change(keys), real, keys)

    def moved(self, device: torch.device, factors) -> RatioGate:
        return replace(self, other=self.other.moved(device, factors))


def gate_variants(
    gates: Mapping[int, LeverageGate], edited: Mapping[int, Tensor], ordinary: Mapping[int, Tensor]
) -> Iterator[tuple[str, float, Callable]]:
    """(gate, setting, the gate that a hook layer gets) for each gate and each way to set it."""
    for name, measure in (("leverage", _leverage(gates)), ("ratio", _ratio)):
        for fraction in FRACTIONS:
            yield (
                f"{name}, edited fraction",
                fraction,
                _gate_at(
                    gates, name, lambda hook, f=fraction, of=measure: f * of(hook, edited[hook.layer]).min().item()
                ),
            )
        for rate in RATES:
            yield (
                f"{name}, background rate",
                rate,
                _gate_at(
                    gates, name, lambda hook, r=rate, of=measure: background_quantile(of(hook, ordinary[hook.layer]), r)
                ),
            )
    if all(gate.retrieval is not None for gate in gates.values()):
        yield "leverage, own key", 0, lambda hook: replace(gates[hook.layer], retrieval=None)
        for sharpness in SHARPNESS:
            yield "leverage, sharpness", sharpness, _sharpened(gates, sharpness)
    yield "off", 0, lambda hook: NoGate()
    joint = min(gate.threshold for gate in gates.values())
    yield "leverage, one threshold", 0, _gate_at(gates, "leverage", lambda hook: joint)
    for layer in gates:
        for name, open_layers in ((f"{layer}", gates.keys() - {layer}), (f"all but {layer}", {layer})):
            yield (
                f"leverage, gate at {name}",
                0,
                lambda hook, free=open_layers: NoGate() if hook.layer in free else gates[hook.layer],
            )


def _gate_at(gates: Mapping[int, LeverageGate], name: str, threshold: Callable[[HookLayer], float]) -> Callable:
    if name == "ratio":
        return lambda hook: RatioGate(threshold(hook), gates[hook.layer])
    return lambda hook: replace(gates[hook.layer], threshold=threshold(hook))


def _sharpened(gates: Mapping[int, LeverageGate], sharpness: float) -> Callable:
    def gate_of(hook: HookLayer) -> LeverageGate:
        gate = gates[hook.layer]
        return replace(gate, retrieval=gate.retrieval.sharpened(sharpness))

    return gate_of


def _leverage(gates: Mapping[int, LeverageGate]) -> Callable[[HookLayer, Tensor], Tensor]:
    return lambda hook, keys: gates[hook.layer].leverage(keys)


def _ratio(hook: HookLayer, keys: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    return hook.change(keys).norm(dim=-1) / keys.float().norm(dim=-1)
