"""What is asked of the base model, found once per model and list of questions: streams of other methods read it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from coachhook.code_digest import code_digest
from coachhook.editor import Editor
from coachhook.metrics import Answers, Question, predict_base
from coachhook.whole_files import read_checked, write_checked


def base_answers(
    editor: Editor, asked: Sequence[Question], protocol: str, directory: str | os.PathLike | None, identity: str
) -> Answers:
    """What `predict_base` finds with the editor disabled, read from `directory` where it was found before.

    Arguments:
        directory: where answers are kept; None to keep none.
        identity: of the model and of what its bits depend on.
    """
    content = [code_digest("metrics"), identity, protocol, [asdict(question) for question in asked]]
    ask = partial(predict_base, editor.model, editor.tokenizer, asked, protocol)
    return [tuple(answer) for answer in of_base(editor, content, directory, ask)]


def of_base(editor: Editor, content: list, directory: str | os.PathLike | None, compute: Callable[[], Any]) -> Any:
    """What `compute` finds with the editor disabled, as JSON has it; kept in `directory` for the same `content`."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    path = None if directory is None else Path(directory) / f"{digest}.json"
    kept = None if path is None else read_checked(path)
    if kept is not None:
        return json.loads(kept)
    with editor.disabled():
        found = compute()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checked(path, json.dumps(found).encode() + b"\n")
    return found
