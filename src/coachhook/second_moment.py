"""Running sums of k kᵀ with a uniform sample of keys and how much C0 still changes; a state to go on from.

Legend: k key (input of a rewrite module, width m), S = Σ k kᵀ, C0 = S / tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_PROBES = 256
_HALVINGS = 10


def sketch_bytes(width: int) -> int:
    """Bytes that the change of one layer's C0 is told from."""
    return 8 * width * min(width, _PROBES)


class Reservoir:
    """A uniform sample of tokens, the same tokens at every layer (Vitter's algorithm R).

    Arguments:
        widths: m per layer.
        size: tokens to keep.
        seed: draws them.
    """

    def __init__(self, widths: Mapping[int, int], size: int, seed: int):
        self.size, self.seen = size, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.kept = {layer: torch.zeros(size, width) for layer, width in widths.items()}

    def offer(self, keys: Mapping[int, Float[Tensor, "tokens m"]]) -> None:
        """Some more tokens, in order."""
        places = self.draw(len(next(iter(keys.values()))))
        for layer, rows in keys.items():
            self.put(layer, rows, places)

    def draw(self, count: int) -> dict[int, int]:
        """Which of the next `count` tokens go where: their index by slot."""
        order = torch.arange(self.seen, self.seen + count)
        slots = (torch.rand(count, generator=self.generator, dtype=torch.float64) * (order + 1)).long()
        slots = torch.where(order < self.size, order, slots)
        chosen = (slots < self.size).nonzero()[:, 0]
        self.seen += count
        # A slot drawn twice in one batch keeps the later token, as one by one would.
        return {int(slots[index]): int(index) for index in chosen}

    def put(self, layer: int, rows: Float[Tensor, "tokens m"], places: Mapping[int, int]) -> None:
        """Keep the drawn tokens' keys of one layer."""
        self.kept[layer][list(places)] = rows[list(places.values())].float().cpu()

    def keys(self) -> dict[int, Float[Tensor, "n m"]]:
        return {layer: kept[: min(self.seen, self.size)].clone() for layer, kept in self.kept.items()}


class SecondMoments:
    """S of several layers, with a sample of the keys and the change of C0 from halvings of the budget to the budget.

    The change ‖C0 − C0 before‖ / ‖C0‖ (Frobenius) is taken on C0 Ω, Ω having `_PROBES` columns of random signs, so
    that no second m×m matrix is kept: E‖M Ω‖² = ‖M‖² · columns, standard error at most 5 %. Keys of at most
    `_PROBES` take Ω = I, which is exact.

    Arguments:
        widths: m per layer.
        sample: how many keys to keep per layer.
        budget: tokens at which the count will end.
        seed: draws the sample and Ω.
        devices: where each layer's S is kept.
    """

    def __init__(
        self, widths: Mapping[int, int], sample: int, budget: int, seed: int, devices: Mapping[int, torch.device]
    ):
        self._widths, self._seed = widths, seed
        self.sums = {
            layer: torch.zeros((width, width), dtype=torch.float64, device=devices[layer])
            for layer, width in widths.items()
        }
        self.reservoir = Reservoir(widths, sample, seed)
        self.convergence: dict[int, list[tuple[int, float]]] = {layer: [] for layer in widths}
        self._marks = [budget / 2**halving for halving in reversed(range(_HALVINGS + 1))]
        self._sketches: dict[int, Float[Tensor, "m probes"]] = {}

    @property
    def tokens(self) -> int:
        """How many tokens were counted."""
        return self.reservoir.seen

    def add(self, recorded: dict[int, Float[Tensor, "batch time m"]], real: Bool[Tensor, "batch time"]) -> None:
        """Count the real tokens of a batch. `recorded` is emptied on the way, to free memory layer by layer."""
        places = self.reservoir.draw(int(real.sum()))
        for layer in list(recorded):
            rows = _real_rows(recorded.pop(layer), real)
            wide = rows.double()
            self.sums[layer] += wide.T @ wide
            self.reservoir.put(layer, rows, places)

    def look(self) -> dict[int, float]:
        """The change of C0 per layer since the last look, where a further doubling is reached; else nothing."""
        if not self._marks or self.tokens < self._marks[0]:
            return {}
        self._marks = [mark for mark in self._marks if mark > self.tokens]
        changes = {}
        for layer, total in self.sums.items():
            sketch = total @ self._probes(self._widths[layer], total.device) / self.tokens
            if layer in self._sketches:
                changes[layer] = float((sketch - self._sketches[layer]).norm() / sketch.norm())
                self.convergence[layer].append((self.tokens, changes[layer]))
            self._sketches[layer] = sketch
        return changes

    def matrices(self) -> dict[int, Float[Tensor, "m m"]]:
        """C0 per layer, on the CPU. It is S itself, divided (a copy would double the memory), so nothing can follow."""
        return {layer: self.sums.pop(layer).div_(self.tokens).cpu() for layer in list(self.sums)}

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors and JSON values that `restore` goes on from."""
        tensors = {f"sum.{layer}": total for layer, total in self.sums.items()}
        tensors |= {f"sample.{layer}": kept for layer, kept in self.reservoir.kept.items()}
        tensors |= {f"sketch.{layer}": sketch for layer, sketch in self._sketches.items()}
        tensors["generator"] = self.reservoir.generator.get_state()
        info = {
            "tokens": self.tokens,
            "marks": self._marks,
            "looked": bool(self._sketches),
            "convergence": {str(layer): points for layer, points in self.convergence.items()},
        }
        return tensors, info

    def restore(self, tensor: Callable[[str], Tensor], info: Mapping) -> None:
        """Go on from a `state` of the same layers, bit for bit. `tensor` reads one of its tensors."""
        for layer in self._widths:
            self.sums[layer].copy_(tensor(f"sum.{layer}"))
            self.reservoir.kept[layer].copy_(tensor(f"sample.{layer}"))
            self.convergence[layer] = [tuple(point) for point in info["convergence"][str(layer)]]
            if info["looked"]:
                self._sketches[layer] = tensor(f"sketch.{layer}").to(self.sums[layer].device)
        self.reservoir.generator.set_state(tensor("generator"))
        self.reservoir.seen, self._marks = info["tokens"], list(info["marks"])

    def _probes(self, width: int, device: torch.device) -> Float[Tensor, "m probes"]:
        """Ω, the same at every look."""
        if width <= _PROBES:
            return torch.eye(width, dtype=torch.float64, device=device)
        generator = torch.Generator().manual_seed(self._seed)
        signs = torch.randint(2, (width, _PROBES), generator=generator, dtype=torch.int8)
        return (2 * signs - 1).to(device, torch.float64)


def _real_rows(keys: Float[Tensor, "batch time m"], real: Bool[Tensor, "batch time"]) -> Float[Tensor, "tokens m"]:
    return keys[real.to(keys.device)]
