"""Recording and changing what parts of a model are given while it runs, and running parts of it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from coachhook.architectures import ModelParts

Recorded = TypeVar("Recorded")
Answer = Callable[[Tensor, Tensor], Tensor | None]


class BlockInputs:
    """What one block was called with, to run it again later with other hidden states.

    Works for every family, because masks and position embeddings are those the model itself made.
    """

    def __init__(self, args: tuple, kwargs: dict):
        self.hidden: Float[Tensor, "batch time d"] = _hidden(args, kwargs)
        self._args = args[1:]
        self._kwargs = {name: value for name, value in kwargs.items() if args or name != _HIDDEN}

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
            return value[rows.to(value.device)]
        return value


class RewriteHook:
    """Calls `answer(keys, output)` whenever a layer's rewrite module has run; what it returns replaces the output.

    Both are (batch, time, width), also in families whose blocks lay the tokens of all rows in one (OPT).
    """

    def __init__(self, parts: ModelParts, layer: int, answer: Answer):
        self._answer = answer
        module = parts.rewrite_module(layer)  # refuses before any hook is set
        self._rows = _RowShape()
        self._handles = (
            parts.blocks[layer].register_forward_pre_hook(self._rows.see, with_kwargs=True),
            module.register_forward_hook(self._run),
        )

    def remove(self) -> None:
        """Take the hook off the model."""
        for handle in self._handles:
            handle.remove()

    def _run(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        changed = self._answer(self._rows.part(args[0]), self._rows.part(output))
        return changed if changed is None else changed.reshape(output.shape)


class _RowShape:
    """Batch and time of a block's last call, to part the tokens that its modules get as one long row."""

    def see(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        self._shape = _hidden(args, kwargs).shape[:2]

    def part(self, tokens: Tensor) -> Tensor:
        return tokens if tokens.ndim > 2 else tokens.unflatten(0, self._shape)


class _Stop(Exception):
    """Ends a forward pass that has delivered what was asked for."""


@contextmanager
def block_inputs(parts: ModelParts, blocks: Sequence[int], stop: bool = True) -> Iterator[dict[int, BlockInputs]]:
    """Record the inputs of some blocks while the model runs; with `stop`, end the pass before the last of them."""
    with _recorded({index: parts.blocks[index] for index in blocks}, BlockInputs, stop) as recorded:
        yield recorded


@contextmanager
def rewrite_inputs(
    parts: ModelParts, layers: Sequence[int], stop: bool = True
) -> Iterator[dict[int, Float[Tensor, "batch time m"]]]:
    """Record the keys (inputs of the rewrite modules) of some layers; with `stop`, end the pass at the last."""
    modules = {layer: parts.rewrite_module(layer) for layer in layers}
    rows = _RowShape()
    handles = [parts.blocks[layer].register_forward_pre_hook(rows.see, with_kwargs=True) for layer in modules]
    try:
        with _recorded(modules, lambda args, kwargs: rows.part(args[0]), stop) as recorded:
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recorded(
    modules: Mapping[int, nn.Module], keep: Callable[[tuple, dict], Recorded], stop: bool
) -> Iterator[dict[int, Recorded]]:
    """What `keep` makes of the arguments of each module's last call; with `stop`, end the pass at the highest index."""
    recorded: dict[int, Recorded] = {}

    def hook(index: int):
        def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
            recorded[index] = keep(args, kwargs)
            if stop and index == max(modules):
                raise _Stop

        return record

    handles = [module.register_forward_pre_hook(hook(index), with_kwargs=True) for index, module in modules.items()]
    try:
        with suppress(_Stop):
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


_HIDDEN = "hidden_states"


def _hidden(args: tuple, kwargs: dict) -> Tensor:
    """The hidden states that a block is called with; some versions of transformers give them by name."""
    return args[0] if args else kwargs[_HIDDEN]
