"""What editing does besides: fluency and general ability, of the base model before and of the edited model after."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coachhook.edit_request import EditRequest
from coachhook.editor import Editor
from coachhook.journal import write_text
from coachhook.metrics.ability import general_ability
from coachhook.metrics.fluency import generate_texts, ngram_entropy

if TYPE_CHECKING:
    from coachhook.stream import StreamConfig

logger = logging.getLogger(__name__)
State = Literal["base", "edited"]
STATES: tuple[State, ...] = ("base", "edited")


def measure_side_effects(
    config: StreamConfig, editor: Editor, stream: Sequence[EditRequest], checkpoint: Path, state: State
) -> None:
    """Measure what the stream asks for in one state of the model, unless it stands in the checkpoint already.

    Raises:
        CoachHookError: a prompt is too long, or a task cannot be run.
    """
    for name in _wanted(config):
        path = _path(checkpoint, name, state)
        if path.exists():
            continue
        with editor.disabled() if state == "base" else nullcontext():
            found = _MEASURES[name](config, editor, stream)
        write_text(path, json.dumps(found) + "\n")
        logger.info("%s of the %s model: %s", name, state, json.dumps(found.get("ngram_entropy", found)))


def write_side_effects(config: StreamConfig, checkpoint: Path, out: Path) -> None:
    """`fluency.json` and `ability.json`, where the stream asks for them: the same of "base" and of "edited"."""
    for name in _wanted(config):
        found = {state: json.loads(_path(checkpoint, name, state).read_text()) for state in STATES}
        write_text(out / f"{name}.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _wanted(config: StreamConfig) -> list[str]:
    return [name for name in _MEASURES if getattr(config, name) is not None]


def _path(checkpoint: Path, name: str, state: State) -> Path:
    return checkpoint / f"{name}.{state}.json"


def _fluency(config: StreamConfig, editor: Editor, stream: Sequence[EditRequest]) -> dict:
    """Texts that begin with edit prompts, drawn from those that the final model is edited with."""
    edited = stream if config.round == "consecutive" else stream[-((len(stream) - 1) % config.batch_size + 1) :]
    chosen = random.Random(config.seed).sample(edited, min(config.fluency, len(edited)))
    texts = generate_texts(editor.model, editor.tokenizer, [request.text for request in chosen], seed=config.seed)
    return {"ngram_entropy": ngram_entropy(texts), "prompts": len(texts), "texts": texts}


def _ability(config: StreamConfig, editor: Editor, stream: Sequence[EditRequest]) -> dict:
    return general_ability(editor, editor.tokenizer, seed=config.seed, **config.ability.model_dump())


_MEASURES = {"fluency": _fluency, "ability": _ability}
