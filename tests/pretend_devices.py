"""Several devices on a machine with one: tensors carry the name of a device, and mixing two of them is an error.

All tensors lie on the CPU. While `PretendDevices` is on, every call of torch from Python is watched: `device` shows the
pretended device, `to` changes it, results inherit it, and operands from two devices are refused as CUDA refuses them.
What happens inside a compiled kernel is not seen. Moving inputs to each module is accelerate's own code.
"""

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

HOME = torch.device("cpu")
_MAY_MIX = (torch.Tensor.copy_, torch.autograd.grad, torch._has_compatible_shallow_copy_type)
_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.index_put)


class PretendDevices(TorchFunctionMode):
    """Inside, tensors without a name are at `HOME`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function == torch.Tensor.device.__get__:
            return device_of(args[0])
        if function == torch.Tensor.data.__set__:
            _name(args[0], device_of(args[1]))
            return function(*args, **kwargs)
        place, args, kwargs = _asked_for(function, args, kwargs)
        place = place or _common(function, args, kwargs)
        result = function(*args, **kwargs)
        if function == torch.autograd.grad:
            inputs = args[1] if isinstance(args[1], list | tuple) else [args[1]]
            for gradient, given in zip(result, inputs, strict=True):
                _name(gradient, device_of(given))
            return result
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        return tree_map(lambda leaf: _placed(leaf, place, given), result)


def device_of(tensor):
    return getattr(tensor, "_pretended", HOME)


def _name(tensor, device):
    if tensor is not None:
        tensor._pretended = device
    return tensor


def _placed(leaf, place, given):
    """A result, named; `to` and `cpu` may have given their operand back, which stays where it is."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if place != device_of(leaf) and any(leaf is operand for operand in given):
        leaf = leaf.clone()
    return _name(leaf, place)


def _asked_for(function, args, kwargs):
    """The device that a call names, None where it names none; and the call for tensors that all lie on the CPU."""
    if function == torch.Tensor.cpu:
        return HOME, args, kwargs
    asked = kwargs.get("device")
    if asked is not None:
        kwargs["device"] = HOME
    if function == torch.Tensor.to:
        rest = list(args)
        for index, argument in enumerate(args[1:], 1):
            if isinstance(argument, torch.Tensor):
                asked, rest[index] = device_of(argument), argument.dtype
            elif isinstance(argument, torch.device | str | int) and not isinstance(argument, bool):
                asked, rest[index] = argument, HOME
        args = tuple(rest)
    return (None if asked is None else torch.device(asked)), args, kwargs


def _common(function, args, kwargs):
    """The device of the operands. Scalars at home go with every device, and so do indices, as in torch."""
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not operands:
        return HOME
    if function in _MAY_MIX:
        return device_of(operands[0])
    places = {device_of(leaf) for leaf in operands if leaf.ndim or device_of(leaf) != HOME} or {HOME}
    if function in _INDEXING:
        first = device_of(operands[0])
        places = {first, *(place for place in places if place != HOME)}
    if len(places) > 1:
        found = ", ".join(sorted(map(str, places)))
        raise RuntimeError(f"{function}: Expected all tensors to be on the same device, found {found}")
    return places.pop()


class MoveInputs(ModelHook):
    """What accelerate's own hook does on a dispatched model: inputs go to the module's device."""

    def __init__(self, device):
        self.execution_device = device

    def pre_forward(self, module, *args, **kwargs):
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def spread(model, places):
    """Put each named module, with all that is in it, on its pretended device."""
    add_hook_to_module(model, MoveInputs(torch.device(next(iter(places.values())))))
    for name, device in places.items():
        for module in model.get_submodule(name).modules():
            add_hook_to_module(module, MoveInputs(torch.device(device)))
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor._pretended = torch.device(device)
    return model
