"""What is told of a model whose parts are not known: the modules that may be its parts, and how to declare them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_LISTED = 6


def explain_unknown(model: PreTrainedModel) -> str:
    """One line: blocks found, candidate down-projections with their shapes, and a declaration to start from."""
    name, blocks = _blocks(model)
    if blocks is None:
        return f"found no list of blocks in {type(model).__name__}; is it a transformer?"
    seen, maps = f"found blocks {name} ({len(blocks)} × {type(blocks[0]).__name__})", _linear_maps(blocks[0])
    down = {path: shape for path, shape in maps.items() if shape[0] > shape[1]}
    if not down:
        only = f"without an MLP's down-projection (a mixture of experts?), only {_listed(maps)}"
        return f"{seen} {only}; it cannot be edited"
    norm = _last_norm(model, name)
    # An MLP's projection is the widest one that leads back to the hidden states.
    likely = max(down, key=lambda path: down[path][0])
    return (
        f"{seen} with candidate rewrite modules {_listed(down)}, and the norm {norm}; declare its own: "
        "Editor(..., architecture="
        f"{{'blocks': '{name}', 'rewrite_module': '{likely}', 'final_norm': '{norm}'}}), in a study the model's key "
        "`architecture` in config/models.yaml, elsewhere declare_architecture(model, ...); see docs/models.md"
    )


def _blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList | None]:
    """The longest list of modules of one class, the first of equals; blocks may hold lists, which are shorter."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(item) for item in module}) == 1
    }
    name = max(lists, key=lambda name: (len(lists[name]), -len(name)), default="")
    return name, lists.get(name)


def _listed(maps: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{path} ({inputs} → {outputs})" for path, (inputs, outputs) in list(maps.items())[:_LISTED])


def _linear_maps(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Linear maps of a block by name: (inputs, outputs)."""
    found = {}
    for path, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | Conv1D) and weight is not None and weight.ndim == 2:
            rows, columns = weight.shape
            found[path] = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
    return found


def _last_norm(model: PreTrainedModel, blocks: str) -> str:
    outside = [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not name.startswith(f"{blocks}.")
    ]
    return outside[-1] if outside else "?"
