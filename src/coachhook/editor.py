"""The public class: one editor on one model, batch after batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.covariance import Covariance, CovarianceError, check_matrices, read_covariance
from coachhook.edit_request import EditRequest, RequestError
from coachhook.editors import METHODS
from coachhook.editors.base import Method, MethodConfig, Update
from coachhook.errors import CoachHookError
from coachhook.keys import encode_edit
from coachhook.metrics import Metrics, predict, questions, score, summarise


class HyperparameterError(CoachHookError, ValueError):
    """A method or hyper-parameter is unknown or out of range; names it and what is allowed."""


@dataclass(frozen=True)
class StepReport:
    """What `Editor.edit` did.

    Attributes:
        step: number of batches applied, this one included.
        requests: size of this batch.
        thresholds: the gate's threshold per layer after the step; None for methods without one.
        update: what the step wrote; `Editor.replay` applies it again.
    """

    step: int
    requests: int
    thresholds: dict[int, float] | None
    update: Update


class Editor:
    """Edits a Hugging Face causal language model in consecutive batches. Base weights are never written.

    ```python
    editor = Editor(model, tokenizer, method="coachhook", covariance="cov.safetensors", layers=(13, 14, 15, 16, 17))
    editor.edit(requests)
    editor.model.generate(...)
    ```

    Arguments:
        model: a `PreTrainedModel`; it stays usable as it is, now with the edits.
        method: one of `methods()`.
        covariance: file from `compute_covariance`, or C0 (m×m) per layer, for methods that need one.
        hyperparameters: of the method; `layers` defaults to the covariance's.

    Raises:
        HyperparameterError, CovarianceError, ArchitectureError: before anything is touched.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        method: str = "coachhook",
        covariance: str | os.PathLike | Mapping[int, Tensor] | None = None,
        **hyperparameters,
    ):
        if method not in METHODS:
            raise HyperparameterError(f"method: {method!r} is unknown; use one of {', '.join(METHODS)}")
        registered = METHODS[method]
        method_class = registered.load()
        loaded = _load_covariance(covariance, model, hyperparameters.get("layers"))
        if method_class.needs_covariance and loaded is None:
            raise CovarianceError(f"covariance: method {method} needs one; make it with compute_covariance")
        if loaded is not None:
            hyperparameters.setdefault("layers", loaded.layers)
        self.method = method
        self.config = _configure(method, method_class.config_class, {**registered.preset, **hyperparameters})
        self.model, self.tokenizer = model, tokenizer
        model.eval()
        self._method: Method = method_class(model, tokenizer, self.config, loaded)
        self._step = 0

    @property
    def step(self) -> int:
        """Number of batches applied."""
        return self._step

    def edit(self, requests: Sequence[EditRequest]) -> StepReport:
        """Write one batch, on top of all earlier ones.

        Raises:
            RequestError: a request does not fit the model's context; nothing has been edited then.
        """
        self.check(requests)
        update = self._method.edit(requests)
        self._step += 1
        return StepReport(self._step, len(requests), self._method.thresholds(), update)

    def replay(self, update: Update) -> None:
        """Apply the update of an earlier step, in order: the same bits as editing, without the work."""
        self._method.replay(update)
        self._step += 1

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Refuse what cannot be edited on this model.

        Raises:
            RequestError: no requests, or a prompt with a prefix and its target is longer than the context.
        """
        if not requests:
            raise RequestError("there are no requests; give at least one")
        longest = self._method.parts.context_length
        for position, request in enumerate(requests, 1):
            lengths = [
                len(encode_edit(self.tokenizer, request, prefix, request.target_new).ids)
                for prefix in ("", *self._method.prefixes)
            ]
            if max(lengths) > longest:
                behind = f" ({max(lengths)} behind the longest prefix)" if max(lengths) > lengths[0] else ""
                problem = f"{lengths[0]} tokens with its target{behind}, the context holds {longest}; shorten it"
                raise RequestError(problem, "prompt", request.case_id, position)

    def evaluate(self, requests: Sequence[EditRequest], protocol: str = "easyedit") -> Metrics:
        """Reliability, generality and locality of these requests, as the model stands now (see `metrics`)."""
        asked = questions(requests)
        with self.disabled():
            base = predict(self.model, self.tokenizer, asked, protocol)
        answers = predict(self.model, self.tokenizer, asked, protocol)
        return summarise(asked, score(self.tokenizer, asked, answers, base, protocol))

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the model is bit for bit the base model."""
        return self._method.disabled()

    def thresholds(self) -> dict[int, float] | None:
        """The gate's threshold (α) per layer; None for methods without a gate."""
        return self._method.thresholds()

    def z_scores(self, texts: Sequence[str]):
        """Per hook layer: its index, the z-score of every token of `texts` (batch, time), the mask of real tokens."""
        return self._method.z_scores(texts)

    def close(self) -> None:
        """Take everything off the model: it is the base model again."""
        self._method.close()

    def __repr__(self) -> str:
        return f"Editor(method={self.method!r}, step={self.step}, layers={list(self.config.layers)})"


def _load_covariance(
    covariance: str | os.PathLike | Mapping[int, Tensor] | None,
    model: PreTrainedModel,
    layers: Sequence[int] | None,
) -> Covariance | None:
    if covariance is None or isinstance(covariance, Covariance):
        return covariance
    if isinstance(covariance, Mapping):
        check_matrices(covariance)
        return Covariance(dict(covariance), {}, 0, "")
    named = layers if isinstance(layers, Sequence) else None  # what is no list is refused by the configuration
    return read_covariance(covariance, model, named)


def _configure(method: str, config_class: type[MethodConfig], values: dict) -> MethodConfig:
    """The method's configuration, or one line that names the first value it refuses."""
    try:
        return config_class(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"][:1]))
        known = ", ".join(config_class.model_fields)
        raise HyperparameterError(
            f"{name}: {first['msg'].lower()} (method {method}, got {first.get('input')!r}); it has {known}"
        ) from None
