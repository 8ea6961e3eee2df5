"""LoRA: one low-rank adapter, by the peft library, that every batch goes on training.

Legend: A (rank×m) and B (d×rank) of each target module; its output gets (lora_alpha / rank) · B A k added.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Literal

import peft
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coachhook.architectures import ArchitectureError
from coachhook.edit_request import EditRequest
from coachhook.editors.base import Method, MethodConfig, Update
from coachhook.editors.fine_tuning import TargetLoss, minimise
from coachhook.switch import Switch

_ADAPTER = "edits"


class LoraConfig(MethodConfig):
    """Hyper-parameters; defaults are EasyEdit's for GPT2-XL (there with AdaLoRA, on `attn.c_attn` of every layer)."""

    target_modules: Literal["rewrite"] | tuple[str, ...] = Field(
        "rewrite",
        min_length=1,
        description="rewrite: the rewrite module of each layer; or names of modules in a block, or the ends of names",
    )
    rank: int = Field(8, ge=1, description="rank of each module's change")
    lora_alpha: float = Field(32, gt=0, description="the change is lora_alpha / rank · B A")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the adapter's inputs dropped while it trains")
    steps: int = Field(30, ge=1, description="Adam steps per batch")
    learning_rate: float = Field(5e-3, gt=0, description="Adam's learning rate")
    stop_loss: float = Field(0.0, ge=0, description="a batch whose loss is below this is done")


class Lora(Method):
    """Low-rank adapters trained on the targets' cross-entropy: the same adapter all along, a fresh Adam per batch.

    While it is open, the adapted modules are wrapped by peft inside the same model. Its `state_dict` is the base
    model's all the same; `close` unwraps the modules.

    Raises:
        ArchitectureError: a layer or target module does not exist, or cannot be adapted, or is offloaded.
    """

    config_class = LoraConfig
    paper = "Hu et al., ICLR 2022: LoRA: Low-Rank Adaptation of Large Language Models"
    growing_state = "nothing"
    effect = "everywhere"
    config: LoraConfig

    def __init__(self, model, tokenizer, config: LoraConfig, covariance=None):
        super().__init__(model, tokenizer, config, covariance)
        targets = self._targets()
        if any(module.weight.is_meta for module in targets.values()):
            raise ArchitectureError(
                "method lora: adapters cannot be put on weights that are offloaded to the CPU or disk; load the model "
                "without offloading"
            )
        trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.dropout,
            target_modules=list(targets),
            fan_in_fan_out=isinstance(next(iter(targets.values())), Conv1D),
        )
        with _seeded(config.seed):
            self._tuner = peft.LoraModel(model, settings, _ADAPTER)
        for parameter, required in trainable.items():  # peft freezes all weights but its own
            parameter.requires_grad_(required)
        self._layers = {name: model.get_submodule(name) for name in targets}
        self._handle = model.register_state_dict_post_hook(partial(_as_base, tuple(targets)))
        for layer in self._layers.values():
            layer.eval()
            if layer.weight.dtype.itemsize < 4:  # Adam's steps would be lost in half precision
                layer.lora_A.float()
                layer.lora_B.float()
        self._start = self._snapshot()
        self._step = 0
        self._switch = Switch(self._enable)

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        before = self._snapshot()
        try:
            self._train(TargetLoss(self.parts, self.tokenizer, requests))
            update = Update({name: tensor.cpu() for name, tensor in self._snapshot().items()})
        finally:
            self._put(before)
        self.replay(update)
        return update

    def replay(self, update: Update) -> None:
        self._put(update.tensors)
        self._step += 1

    def reset(self) -> None:
        self._put(self._start)
        self._step = 0

    def disabled(self) -> AbstractContextManager[None]:
        return self._switch.off()

    def close(self) -> None:
        self._handle.remove()
        self._tuner.unload()

    def merged(self) -> PreTrainedModel:
        _, tuner, handle = copy.deepcopy((self.model, self._tuner, self._handle))
        handle.remove()
        return tuner.merge_and_unload()

    def state_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._adapter().values())

    def _enable(self, enabled: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(enabled)

    def _targets(self) -> dict[str, nn.Module]:
        """The modules to adapt, by their names in the model."""
        wanted = self.config.target_modules
        found: list[nn.Module] = []
        for layer in self.config.layers:
            rewrite = self.parts.rewrite_module(layer)  # refuses a layer that does not exist
            if wanted == "rewrite":
                found.append(rewrite)
                continue
            modules = [(f".{name}", module) for name, module in self.parts.blocks[layer].named_modules()]
            for name in wanted:
                matches = [module for known, module in modules if known.endswith(f".{name}")]
                if not matches or not all(isinstance(module, nn.Linear | Conv1D) for module in matches):
                    known = ", ".join(name[1:] for name, module in modules if isinstance(module, nn.Linear | Conv1D))
                    raise ArchitectureError(f"target_modules: {name!r} is no linear module of a block; use {known}")
                found += matches
        return {name: module for name, module in self.model.named_modules() if module in found}

    def _adapter(self) -> dict[str, nn.Parameter]:
        layers = self._layers.items()
        return {f"A.{name}": layer.lora_A[_ADAPTER].weight for name, layer in layers} | {
            f"B.{name}": layer.lora_B[_ADAPTER].weight for name, layer in layers
        }

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._adapter().items()}

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._adapter().items():
            parameter.copy_(tensors[name])

    def _train(self, loss: TargetLoss) -> None:
        config = self.config
        parameters = list(self._adapter().values())
        dropouts = [layer.lora_dropout for layer in self._layers.values()]
        seed = random.Random(f"{config.seed} {self._step}").getrandbits(63)  # replayed steps draw nothing
        for dropout in dropouts:
            dropout.train()
        try:
            with _seeded(seed, {parameter.device for parameter in parameters}):
                minimise(
                    loss,
                    parameters,
                    steps=config.steps,
                    learning_rate=config.learning_rate,
                    stop_loss=config.stop_loss,
                )
        finally:
            for dropout in dropouts:
                dropout.eval()


def _as_base(adapted: tuple[str, ...], model: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    """Give `state` the base model's names again, and leave the adapters out."""
    given = list(state.items())
    state.clear()
    for name, tensor in given:
        module = next((found for found in adapted if name.startswith(f"{prefix}{found}.")), None)
        inside = name.removeprefix(f"{prefix}{module}.")
        if module is None:
            state[name] = tensor
        elif inside.startswith("base_layer."):
            state[f"{prefix}{module}.{inside.removeprefix('base_layer.')}"] = tensor


@contextmanager
def _seeded(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Inside, the global generators that peft draws from start at `seed`; afterwards they are as they were."""
    cuda = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(cuda):
        torch.random.default_generator.manual_seed(seed)
        for device in cuda:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield
