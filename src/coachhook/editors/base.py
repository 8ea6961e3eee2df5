"""What every editing method offers, and what a step of it leaves behind."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.covariance_file import Covariance
from coachhook.edit_request import EditRequest
from coachhook.hooks import HookLayers


class MethodConfig(BaseModel):
    """Hyper-parameters that every method has. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[int, ...] = Field(min_length=1, description="edited layers, ascending")
    seed: int = Field(0, description="seed of everything random in the method")

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if list(layers) != sorted(set(layers)):
            raise ValueError("must be ascending, without repeats")
        return layers


@dataclass(frozen=True)
class Update:
    """What one step did, complete enough to do it again without the requests' text.

    Attributes:
        tensors: by name.
        info: JSON values (thresholds and the like).
    """

    tensors: dict[str, Tensor]
    info: dict = field(default_factory=dict)


class Method(ABC):
    """One editing method on one model. The base weights are never written.

    Edits are steps: `edit` computes and applies one, `replay` applies a stored one with the same bits, `reset`
    goes back to the base model. Saved edits are loaded without the covariance: then `covariance` is None even where
    the method needs one, and everything but `edit` works.
    """

    config_class: ClassVar[type[MethodConfig]]
    paper: ClassVar[str]
    """Authors, venue and year, and the title."""
    growing_state: ClassVar[str]
    """What is kept for answering and grows with the number of edits; "nothing" where its size is fixed."""
    effect: ClassVar[Literal["everywhere", "scoped"]]
    """Whether edits change the model's answer to every token, or only where a gate, radius or classifier lets them."""
    needs_covariance: ClassVar[bool] = False
    prefixes: tuple[str, ...] = ()  # texts that the method puts in front of prompts while it edits

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: MethodConfig,
        covariance: Covariance | None,
    ):
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.parts = ModelParts(model)

    @classmethod
    def variant(cls, hyperparameters: Mapping) -> type[Method]:
        """The class that does what the hyper-parameters ask for, where a method's variants are classes of their own."""
        return cls

    @abstractmethod
    def edit(self, requests: Sequence[EditRequest]) -> Update:
        """Write one batch on top of all earlier ones."""

    @abstractmethod
    def replay(self, update: Update) -> None:
        """Apply the update of an earlier `edit`, in the order of the steps."""

    @abstractmethod
    def reset(self) -> None:
        """Forget every step."""

    @abstractmethod
    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the model is bit for bit the base model."""

    @abstractmethod
    def close(self) -> None:
        """Leave the model as it was found."""

    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes that answering with the edits takes besides the base model; journal and solver are not counted."""

    def thresholds(self) -> dict[int, float] | None:
        """The gate's threshold per layer, where the method has a gate."""
        return None

    def z_scores(self, texts: Sequence[str]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Layer, z-scores (batch, time) and mask of real tokens; methods without hook layers have none."""
        return iter(())


class HookLayerMethod(Method):
    """A method whose edits are the ΔW of hook layers."""

    hooks: HookLayers

    def reset(self) -> None:
        for hook in self.hooks:
            hook.reset()

    def disabled(self) -> AbstractContextManager[None]:
        return self.hooks.modes("off")

    def close(self) -> None:
        self.hooks.close()

    def state_bytes(self) -> int:
        return self.hooks.state_bytes()


class ForwardHookMethod(Method):
    """A method that answers through forward hooks of its own, which look at `_enabled` first."""

    _enabled = True
    _handles: Sequence[RemovableHandle] = ()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


class TrainedMethod(Method):
    """A method whose editor is trained beforehand, on requests that no stream uses (MEND, SERAC)."""

    training_class: ClassVar[type[BaseModel]]
    """Hyper-parameters of that training."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: MethodConfig,
        covariance: Covariance | None,
        trained_editor: str | os.PathLike,
    ):
        super().__init__(model, tokenizer, config, covariance)

    @classmethod
    @abstractmethod
    def train(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: MethodConfig,
        training: BaseModel,
        requests: Sequence[EditRequest],
        *,
        out: str | os.PathLike,
        checkpoint: str | os.PathLike,
        seed: int,
    ) -> None:
        """Train on `requests` and write the editor to `out` (safetensors).

        Killed at any moment and started again with the same arguments, it goes on from the file `checkpoint` and
        ends with the same bytes.
        """
