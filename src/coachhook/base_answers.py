"""The base model's answers, computed once per model and list of questions: streams of other methods read them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from coachhook.editor import Editor
from coachhook.journal import write_text
from coachhook.metrics import Answers, Question, predict_base
from coachhook.provenance import code_digest


def base_answers(
    editor: Editor, asked: Sequence[Question], protocol: str, directory: str | os.PathLike | None, identity: str
) -> Answers:
    """What `predict_base` finds with the editor disabled, read from `directory` where it was found before.

    Arguments:
        directory: where answers are kept; None to keep none.
        identity: of the model and of what its bits depend on.
    """
    path = None if directory is None else Path(directory) / f"{_digest(asked, protocol, identity)}.json"
    if path is not None and path.exists():
        return [tuple(answer) for answer in json.loads(path.read_text())]
    with editor.disabled():
        answers = predict_base(editor.model, editor.tokenizer, asked, protocol)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(answers) + "\n")
    return answers


def _digest(asked: Sequence[Question], protocol: str, identity: str) -> str:
    questions = [asdict(question) for question in asked]
    content = json.dumps([code_digest("metrics"), identity, protocol, questions])
    return hashlib.sha256(content.encode()).hexdigest()[:32]
