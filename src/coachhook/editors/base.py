"""What every editing method offers, and what a step of it leaves behind."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from coachhook.errors import CoachHookError
from coachhook.gates import NoGate
from coachhook.hooks import HookLayers
from coachhook.switch import Switch


class MethodConfig(BaseModel):
    """Hyper-parameters that every method has. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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


class MergeError(CoachHookError, ValueError):
    """The edits cannot be written into weights."""


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
    scope: ClassVar[str] = "its gate"
    """What decides where edits of a scoped method answer."""
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

    @classmethod
    def fitted(cls, config: MethodConfig, covariance: Covariance | None) -> MethodConfig:
        """The configuration with what nobody has set fitted to what the covariance holds."""
        return config

    @abstractmethod
    def edit(self, requests: Sequence[EditRequest]) -> Update:
        """Write one batch on top of all earlier ones."""

    @abstractmethod
    def replay(self, update: Update) -> None:
        """Apply the update of an earlier `edit`, in the order of the steps."""

    def replay_all(self, updates: Iterable[Update]) -> None:
        """Apply the updates of earlier steps, in order: the same bits as one by one."""
        for update in updates:
            self.replay(update)

    def merged(self) -> PreTrainedModel:
        """A copy of the model whose weights hold the edits, without any hook.

        Raises:
            MergeError: the edits do not answer everywhere, as weights do.
        """
        raise MergeError(
            f"{self.scope} decides at which tokens its edits answer, and weights answer at every token; keep the "
            "editor, or edit with a method whose effect is everywhere, such as coachhook-nohook"
        )

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

    @contextmanager
    def recorded_swaps(self) -> Iterator[dict[int, list[Tensor]]]:
        """Inside, per hook layer, which tokens of each call it answers for; methods without hook layers have none."""
        yield {}


class HookLayerMethod(Method):
    """A method whose edits are the ΔW of hook layers."""

    hooks: HookLayers

    def replay_all(self, updates: Iterable[Update]) -> None:
        with self.hooks.gathered():
            super().replay_all(updates)

    def merged(self) -> PreTrainedModel:
        if any(not isinstance(hook.gate, NoGate) for hook in self.hooks):
            return super().merged()
        if any(weight.is_meta for weight in self.model.parameters()):
            raise MergeError("weights that are offloaded cannot be copied; load the model without offloading")
        model, hooks = copy.deepcopy((self.model, self.hooks))  # together: the copied hooks are on the copied model
        hooks.merge()
        return model

    def reset(self) -> None:
        for hook in self.hooks:
            hook.reset()

    def disabled(self) -> AbstractContextManager[None]:
        return self.hooks.disabled()

    def close(self) -> None:
        self.hooks.close()

    def recorded_swaps(self) -> AbstractContextManager[dict[int, list[Tensor]]]:
        return self.hooks.recorded_swaps()

    def state_bytes(self) -> int:
        return self.hooks.state_bytes()


class ForwardHookMethod(Method):
    """A method that answers through forward hooks of its own, which look at `_switch` first."""

    _handles: Sequence[RemovableHandle] = ()

    def __init__(self, model, tokenizer, config, covariance=None, *files):
        super().__init__(model, tokenizer, config, covariance, *files)
        self._switch = Switch()

    def disabled(self) -> AbstractContextManager[None]:
        return self._switch.off()

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
