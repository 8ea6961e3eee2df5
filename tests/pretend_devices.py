"""Several devices on a machine with one: tensors carry the name of a device, and mixing two of them is an error.

All tensors lie on the CPU. While `PretendDevices` is on, every call of torch from Python is watched: `device` shows the
pretended device, `to` changes it, results inherit it, and operands from two devices are refused as CUDA refuses them.
What happens inside a compiled kernel is not seen. Moving inputs to each module is accelerate's own code.
"""

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

HOME = torch.device("cpu")
_MAY_MIX = {torch.Tensor.copy_, torch.equal}  # torch.equal refuses too; the tests themselves compare with it


class PretendDevices(TorchFunctionMode):
    """Inside, tensors without a name are at `HOME`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.device.__get__:
            return device_of(args[0])
        if function is torch.Tensor.data.__set__:
            args[0]._pretended = device_of(args[1])
            return function(*args, **kwargs)
        device = kwargs.pop("device", None)
        if function in (torch.Tensor.to, torch.nn.Module.to):
            device, args = _target(device, args)
        elif function is torch.Tensor.cpu:
            device = HOME
        source = _common(function, args, kwargs)
        result = function(*args, **kwargs)
        place = source if device is None else torch.device(device)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                moved = place is not None and place != getattr(leaf, "_pretended", place)
                if moved and any(leaf is given for given in tree_leaves(args)):  # `to` gave the tensor itself back
                    return _relabelled(result.clone(), place)
                _relabelled(leaf, place or HOME)
        return result


def device_of(tensor):
    return getattr(tensor, "_pretended", HOME)


def _relabelled(tensor, device):
    tensor._pretended = device
    return tensor


def _target(device, args):
    """The device that `to` is told, among its other arguments, which stay."""
    rest = [args[0]]
    for argument in args[1:]:
        if isinstance(argument, torch.Tensor):
            device = device_of(argument)
            rest.append(argument.dtype)
        elif isinstance(argument, torch.device | str | int) and not isinstance(argument, bool):
            device = argument
        else:
            rest.append(argument)
    return device, tuple(rest)


def _common(function, args, kwargs):
    """The device of the operands; scalars and, as indices, tensors at home go with every device, as in torch."""
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not operands:
        return None
    indexing = function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.index_put)
    places = {device_of(leaf) for leaf in operands if leaf.ndim or device_of(leaf) != HOME}
    if indexing:
        places = {device_of(operands[0]), *(place for place in places if place != HOME)}
    if len(places) > 1 and function not in _MAY_MIX:
        raise RuntimeError(f"{function}: Expected all tensors to be on the same device, found {sorted(map(str, places))}")
    if indexing or function in _MAY_MIX:
        return device_of(operands[0])
    return places.pop() if places else HOME


class MoveInputs(ModelHook):
    """What accelerate's own hook does on a dispatched model: inputs go to the module's device."""

    def __init__(self, device):
        self.execution_device = device

    def pre_forward(self, module, *args, **kwargs):
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def spread(model, places):
    """Put each named module, with all that is in it, on its pretended device."""
    for name, device in places.items():
        for module in model.get_submodule(name).modules():
            add_hook_to_module(module, MoveInputs(torch.device(device)))
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor._pretended = torch.device(device)
    return model
