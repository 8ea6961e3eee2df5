"""Where the parts of a model run: on one device, on several, or with weights kept on the CPU or disk (accelerate)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def execution_device(module: nn.Module) -> torch.device:
    """The device that `module` computes on, which is not where its weights lie while they are offloaded."""
    hook = getattr(module, "_hf_hook", None)
    for candidate in (hook, *getattr(hook, "hooks", ())):
        device = getattr(candidate, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def device_name() -> str:
    """What results are computed on where nothing else is said: the first GPU's make, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


@contextmanager
def weights_at_hand(module: nn.Module) -> Iterator[None]:
    """Inside, the module's own weights can be read; offloaded ones are loaded for as long as that."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device  # a second to import, and needed for dispatched models only

    with align_module_device(module):
        yield


def at(values: Tensor, row: Tensor, time: Tensor) -> Tensor:
    """`values[row, time]`, the places being moved to where the values are."""
    return values[row.to(values.device), time.to(values.device)]
