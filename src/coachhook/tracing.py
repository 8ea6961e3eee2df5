"""Recording what parts of a model are given while it runs, and running parts of it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from jaxtyping import Float
from torch import Tensor, nn

from coachhook.architectures import ModelParts


class BlockInputs:
    """What one block was called with, to run it again later with other hidden states.

    Works for every family, because masks and position embeddings are those the model itself made.
    """

    def __init__(self, args: tuple, kwargs: dict):
        self.hidden: Float[Tensor, "batch time d"] = args[0]
        self._args, self._kwargs = args[1:], kwargs

    def run(
        self, block: nn.Module, hidden: Float[Tensor, "batch time d"], rows: Tensor | None = None
    ) -> Float[Tensor, "batch time d"]:
        """The block's output for `hidden`; `rows` picks the rows of the recorded call that `hidden` stands for."""
        args, kwargs = self._args, self._kwargs
        if rows is not None:
            args = tuple(self._pick(value, rows) for value in args)
            kwargs = {name: self._pick(value, rows) for name, value in kwargs.items()}
        output = block(hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output  # transformers < 5 gives tuples

    def _pick(self, value: object, rows: Tensor) -> object:
        if isinstance(value, tuple):
            return tuple(self._pick(item, rows) for item in value)
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == len(self.hidden) > 1:
            return value[rows]
        return value


class _Stop(Exception):
    """Ends a forward pass that has delivered what was asked for."""


@contextmanager
def block_inputs(parts: ModelParts, blocks: Sequence[int], stop: bool = True) -> Iterator[dict[int, BlockInputs]]:
    """Record the inputs of some blocks while the model runs; with `stop`, end the pass before the last of them."""
    recorded: dict[int, BlockInputs] = {}

    def hook(index: int):
        def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
            recorded[index] = BlockInputs(args, kwargs)
            if stop and index == max(blocks):
                raise _Stop

        return record

    handles = [parts.blocks[index].register_forward_pre_hook(hook(index), with_kwargs=True) for index in blocks]
    try:
        with suppress(_Stop):
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def rewrite_inputs(
    parts: ModelParts, layers: Sequence[int], stop: bool = True
) -> Iterator[dict[int, Float[Tensor, "batch time m"]]]:
    """Record the keys (inputs of the rewrite modules) of some layers; with `stop`, end the pass at the last."""
    recorded: dict[int, Tensor] = {}

    def hook(layer: int):
        def record(module: nn.Module, args: tuple) -> None:
            recorded[layer] = args[0]
            if stop and layer == max(layers):
                raise _Stop

        return record

    handles = [parts.rewrite_module(layer).register_forward_pre_hook(hook(layer)) for layer in layers]
    try:
        with suppress(_Stop):
            yield recorded
    finally:
        for handle in handles:
            handle.remove()
