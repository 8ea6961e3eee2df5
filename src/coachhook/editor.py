"""The public class: one editor on one model, batch after batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architecture_check import check_parts
from coachhook.architectures import Architecture, ModelParts, declare_architecture
from coachhook.base_identity import BaseModelIdentity
from coachhook.covariance_file import Covariance, load_covariance
from coachhook.edit_request import EditRequest, RequestError, quoted
from coachhook.edited_model import (
    EditorError,
    check_unmoved,
    claim,
    claimed_by,
    evaluating,
    go_on_training,
    refuse_edited,
    release,
    stop_training,
)
from coachhook.editors import DEFAULT_METHOD
from coachhook.editors.base import MergeError, Method, Update
from coachhook.hyperparameters import check_layers, check_trained_editor, configure, registered
from coachhook.journal import Step, StepReport
from coachhook.keys import check_lengths
from coachhook.metrics import PROTOCOLS, Metrics, check_protocol, predict, predict_base, questions, score
from coachhook.saved_edits import read_edits, read_tokenizer, write_edits
from coachhook.solver import CovarianceError

_ordinary_tensors = torch.inference_mode(False)  # whatever the caller is in: later edits compute with what is made now
_LOOK = "nothing was edited; look for NaN or infinite values in the model's weights, or lower the learning rate"


class Editor:
    """Edits a Hugging Face causal language model in consecutive batches. Base weights are never written.

    ```python
    editor = Editor(model, tokenizer, covariance=covariance)
    editor.edit(requests)
    prompt = tokenizer("Ada Lovelace was born in", return_tensors="pt")
    editor.model.generate(**prompt, max_new_tokens=5)
    ```

    Arguments:
        model: a `PreTrainedModel`; it stays usable as it is, now with the edits. One editor at a time. Its own
            `save_pretrained` and `state_dict` still give the base weights. A deep copy holds the edits for good;
            one made inside `disabled()` holds none.
        method: one of `methods()`; the default is CoachHooK behind the leverage gate, which serves generation too.
        covariance: file from `compute_covariance`, or C0 (m×m) per layer, for methods that need one.
        trained_editor: file from `TrainedMethod.train`, for methods that need one (mend, serac).
        architecture: `blocks`, `rewrite_module` and `final_norm` of a model of an unknown family; declares them.
        hyperparameters: of the method; `layers` defaults to the covariance's.

    Raises:
        HyperparameterError, CovarianceError, ArchitectureError, EditorError: before anything is touched.
    """

    @_ordinary_tensors
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        method: str = DEFAULT_METHOD,
        covariance: str | os.PathLike | Mapping[int, Tensor] | None = None,
        *,
        trained_editor: str | os.PathLike | None = None,
        architecture: Architecture | Mapping[str, str] | None = None,
        **hyperparameters,
    ):
        if architecture is not None:
            declare_architecture(model, architecture)
        needed = registered(method).load().needs_covariance
        loaded = load_covariance(covariance, model, hyperparameters.get("layers"))
        if needed and loaded is None:
            raise CovarianceError(f"covariance: method {method} needs one; make it with compute_covariance")
        self._open(model, tokenizer, method, loaded, trained_editor, hyperparameters)

    @classmethod
    @_ordinary_tensors
    def from_pretrained(
        cls,
        directory: str | os.PathLike,
        model: PreTrainedModel | None = None,
        *,
        step: int | None = None,
        covariance: str | os.PathLike | Mapping[int, Tensor] | None = None,
    ) -> Editor:
        """The editor that `save_pretrained` saved, with the same outputs.

        Arguments:
            model: the base model; loaded by its name where it is not given.
            step: stop after this step (0: the base model); default: the last.
            covariance: only to edit further, with methods that need one.

        Raises:
            JournalError: the directory is incomplete, damaged, of a newer format, or of another base model; or there is
                no such step.
            CovarianceError: the covariance cannot be used, or the edits were made with another one.
        """
        saved = read_edits(directory)
        steps = saved.first(step, directory)
        model = saved.base(model, directory)
        known = load_covariance(covariance, model, saved.layers)
        if known is not None and saved.covariance not in (None, known.sample_digest(saved.layers)):
            raise CovarianceError(
                f"covariance: the edits in {directory} were made with another one, and go on with no other; give that "
                "file, or start anew on the base model"
            )
        editor = cls.__new__(cls)
        editor._open(
            model,
            read_tokenizer(directory, saved),
            saved.method,
            known,
            saved.trained_editor and Path(directory) / saved.trained_editor,
            saved.hyperparameters,
        )
        try:
            editor._covariance = saved.covariance or editor._covariance
            editor._replay([saved_step.read(directory) for saved_step in steps])
        except BaseException:
            editor.close()
            raise
        return editor

    @staticmethod
    def of(model: PreTrainedModel) -> Editor | None:
        """The editor that is open on a model, where its name was lost; None where there is none."""
        return claimed_by(model)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Save all steps, the tokenizer and, where there is one, the trained editor; the base model is only named.

        An earlier save in the same directory is replaced, whole or not at all. The covariance is not saved.
        """
        write_edits(
            directory,
            self.method,
            self.config,
            self._identity,
            self._steps,
            self.tokenizer,
            self._trained_editor,
            self._covariance,
        )

    @property
    def step(self) -> int:
        """Number of batches applied."""
        return len(self._steps)

    @property
    def journal(self) -> tuple[Step, ...]:
        """The steps applied, in order."""
        return tuple(self._steps)

    @property
    def state_bytes(self) -> int:
        """Bytes that answering with the edits takes besides the base model."""
        return self._method.state_bytes()

    @_ordinary_tensors
    def edit(self, requests: Iterable[EditRequest]) -> StepReport:
        """Write one batch, on top of all earlier ones; where this fails nothing has been edited.

        Raises:
            RequestError: a request does not fit the model's context.
            CovarianceError: the editor was loaded without the covariance that its method needs to edit.
            EditorError: the editor is closed, its model was moved to another device or dtype, or the update is not
                finite.
        """
        requests = list(requests)
        self._check_open()
        if self._answers_only:
            raise CovarianceError(
                f"covariance: method {self.method} needs one to edit further; "
                "give it to Editor.from_pretrained(directory, covariance=...)"
            )
        check_unmoved(self.model)
        self.check(requests)
        try:
            with evaluating(self.model), torch.enable_grad():
                update = self._method.edit(requests)
            _check_finite(update)
        except BaseException as error:
            self._restore(self._steps)
            if isinstance(error, torch.linalg.LinAlgError):
                raise EditorError(f"the update cannot be solved for ({str(error).splitlines()[0]}); {_LOOK}") from None
            raise
        self._steps.append(Step.now(update, requests))
        return StepReport(self.step, len(requests), self._method.thresholds(), update)

    @_ordinary_tensors
    def replay(self, update: Update, requests: Sequence[EditRequest] = ()) -> None:
        """Apply the update of an earlier step, in order: the same bits as editing, without the work.

        Arguments:
            requests: what the step was about, for the journal.
        """
        self._replay([Step.now(update, requests)])

    @_ordinary_tensors
    def rollback(self, to_step: int) -> None:
        """Go back to step `to_step` (0: the base model): the same bits as having stopped there.

        Raises:
            EditorError: there is no such step, or the editor is closed.
        """
        self._check_open()
        if not 0 <= to_step <= self.step:
            raise EditorError(f"to_step: {to_step} is not between 0 and {self.step}, the steps applied")
        kept = self._steps[:to_step]
        try:
            self._restore(kept)
        except BaseException:
            self._restore(self._steps)
            raise
        self._steps = kept

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Refuse what cannot be edited on this model.

        Raises:
            RequestError: no requests, something that is none, or a prompt with a prefix and its target is longer than
                the context.
        """
        for position, request in enumerate(requests, 1):
            if not isinstance(request, EditRequest):
                problem = f"{quoted(request)} is no EditRequest; make it one, or read a file with read_requests"
                raise RequestError(problem, record=position)
        check_lengths(self.tokenizer, requests, self._method.prefixes, self._method.parts.context_length)

    def evaluate(self, requests: Iterable[EditRequest], protocol: str = "easyedit") -> Metrics:
        """Reliability, generality, locality and portability of these requests, as the model stands now.

        Under "rome" they are its successes, and the result (`RomeMetrics`) holds its magnitudes and score too.

        Raises:
            RequestError: the protocol is unknown, or a prompt with an answer is longer than the context.
            EditorError: the editor is closed.
        """
        self._check_open()
        check_protocol(protocol)
        requests = list(requests)
        asked = questions(requests)
        with self.disabled():
            base = predict_base(self.model, self.tokenizer, asked, protocol)
        answers = predict(self.model, self.tokenizer, asked, protocol)
        columns = score(self.tokenizer, asked, answers, base, protocol)
        return PROTOCOLS[protocol].summarise(asked, columns)

    def record(self, metrics: Metrics, protocol: str = "easyedit", step: int | None = None) -> None:
        """Keep metrics with a step, in the journal and in what is saved.

        `evaluate` keeps nothing by itself, as it may be asked about any requests at any time.

        Arguments:
            metrics: what `evaluate` gave for the step's requests, usually right after it.
            step: from 1; default: the last.

        Raises:
            EditorError: there is no such step.
        """
        step = self.step if step is None else step
        if not 1 <= step <= self.step:
            raise EditorError(f"step: {step} is not between 1 and {self.step}, the steps applied")
        known = self._steps[step - 1]
        self._steps[step - 1] = replace(known, metrics=known.metrics | {protocol: metrics.row()})

    @_ordinary_tensors
    def merge_and_unload(self) -> PreTrainedModel:
        """A plain copy of the model that holds the edits in its weights, for methods without a gate.

        This editor and its model stay as they are, so there has to be memory for a second model. Outputs are the edited
        model's up to rounding: ΔW is added to weights in their own dtype, and changes below its resolution are lost.

        Raises:
            EditorError: the method has a gate, or weights are offloaded, or the editor is closed.
        """
        self._check_open()
        try:
            merged = self._method.merged()
        except MergeError as error:
            raise EditorError(f"method {self.method}: {error}") from None
        release(merged)
        return merged

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the model is bit for bit the base model, for every thread that uses it."""
        return self._method.disabled()

    def thresholds(self) -> dict[int, float] | None:
        """The gate's threshold (α) per layer; None for methods without a gate."""
        return self._method.thresholds()

    def z_scores(self, texts: Sequence[str]):
        """Per hook layer: its index, the z-score of every token of `texts` (batch, time), the mask of real tokens."""
        return self._method.z_scores(texts)

    def recorded_swaps(self) -> AbstractContextManager[dict[int, list[Tensor]]]:
        """Inside, what the gates do: per hook layer one mask (batch, time) per call of the model, True where the edited
        weights answered. Padding counts for nothing. Empty for methods without hook layers.
        """
        return self._method.recorded_swaps()

    def close(self) -> None:
        """Take everything off the model: it is the base model again, as it was found."""
        if not self._closed:
            self._closed = True
            release(self.model)
            self._method.close()
            go_on_training(self._training)

    def _open(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        method: str,
        covariance: Covariance | None,
        trained_editor: str | os.PathLike | None,
        hyperparameters: dict,
    ) -> None:
        """Put the method on the model; without a covariance that it needs, it answers and replays only."""
        refuse_edited(model)
        entry = registered(method)
        method_class = entry.load()
        check_trained_editor(method, method_class, trained_editor)
        layers = {} if covariance is None else {"layers": covariance.layers}
        values = {**entry.preset, **layers, **hyperparameters}
        method_class = method_class.variant(values)
        self.method, self.model, self.tokenizer = method, model, tokenizer
        check_layers(method, method_class.config_class, values, model)
        self.config = method_class.fitted(configure(method, method_class.config_class, values), covariance)
        self._identity = BaseModelIdentity.of(model, self.config.layers)
        self._trained_editor = trained_editor
        self._answers_only = method_class.needs_covariance and covariance is None
        if not tokenizer.is_fast:
            raise EditorError(
                f"tokenizer: {type(tokenizer).__name__} does not say where its tokens stand in a text; give a fast one "
                "(AutoTokenizer with use_fast=True), where the model has one"
            )
        check_parts(ModelParts(model))
        training = stop_training(model)  # until the editor is closed
        try:
            self._method: Method = method_class(
                model, tokenizer, self.config, covariance, *filter(None, [trained_editor])
            )
        except BaseException:
            go_on_training(training)
            raise
        self._training = training
        used = covariance if method_class.needs_covariance else None
        self._covariance = None if used is None else used.sample_digest(self.config.layers)
        self._steps: list[Step] = []
        self._closed = False
        claim(model, self)

    def _check_open(self) -> None:
        if self._closed:
            raise EditorError("the editor is closed; make a new one")

    def _restore(self, steps: Sequence[Step]) -> None:
        """Have the method as it was after these steps, whatever state it is in."""
        self._method.reset()
        self._method.replay_all(step.update for step in steps)

    def _replay(self, steps: Sequence[Step]) -> None:
        self._check_open()
        self._method.replay_all(step.update for step in steps)
        self._steps += steps

    def __repr__(self) -> str:
        return f"Editor(method={self.method!r}, step={self.step}, layers={list(self.config.layers)})"


def _check_finite(update: Update) -> None:
    for name, tensor in update.tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise EditorError(f"the update holds NaN or infinite values ({name}); {_LOOK}")
