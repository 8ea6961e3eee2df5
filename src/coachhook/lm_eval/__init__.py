"""A directory of edits as a model of EleutherAI's lm-evaluation-harness (package lm-eval, extra `eval`).

Importing this module registers it: `lm_eval.simple_evaluate(model="coachhook", model_args="path=my-edits", ...)`.
On the command line: `python -m coachhook.lm_eval run --model coachhook --model_args path=my-edits --tasks ...`; a
lm-eval that knows plugins finds it by itself.
"""

from __future__ import annotations

import copy

from lm_eval.api.registry import register_model

from coachhook.errors import CoachHookError
from coachhook.load_editor import load_editor
from coachhook.metrics.harness import MaskedModel


class ModelArgumentError(CoachHookError, ValueError):
    """What lm-eval was given for the model does not fit."""


@register_model("coachhook")
class EditedModel(MaskedModel):
    """The edited model of a directory that `Editor.save_pretrained` or `coachhook edit` wrote.

    Generated answers are written with a cache, so a gate that is silent there (the paper's) is silent.

    Arguments:
        path: the directory.
        base: directory or hub id of the base model; default: the name that the edits know it by.
        step: the edits as they were after this step; 0: the base model.
        device: default: the GPU where there is one.
        batch_size: a number; "auto" is not known here.
        others: as lm-eval's `hf` has them, such as max_length.

    Raises:
        ModelArgumentError: there is no path, or the batch size is no number.
        JournalError: as `load_editor`.
    """

    def __init__(
        self,
        path: str | None = None,
        base: str | None = None,
        step: int | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **others,
    ):
        if path is None:
            raise ModelArgumentError("model_args: path is missing; give the directory of edits, path=my-edits")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ModelArgumentError(f"batch_size: {batch_size!r} is not a number from 1; give one")
        self.editor = load_editor(str(path), base, device=device or "auto", step=step)
        # lm-eval gives a tokenizer without a padding token one
        tokenizer = copy.deepcopy(self.editor.tokenizer)
        super().__init__(self.editor.model, tokenizer=tokenizer, batch_size=int(batch_size), **others)
