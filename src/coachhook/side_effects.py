"""What editing does besides: fluency and general ability, of the base model before and of the edited model after."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coachhook.base_answers import of_base
from coachhook.code_digest import code_digest
from coachhook.edit_request import EditRequest
from coachhook.editor import Editor
from coachhook.metrics.ability import general_ability
from coachhook.metrics.fluency import generate_texts, ngram_entropy
from coachhook.whole_files import file_digest, read_checked, write_checked, write_text

if TYPE_CHECKING:
    from coachhook.stream import StreamConfig

logger = logging.getLogger(__name__)
State = Literal["base", "edited"]
STATES: tuple[State, ...] = ("base", "edited")
NAMES = ("fluency", "ability")


class SideEffects:
    """Measures what a stream asks for, and keeps it in the stream's checkpoint."""

    def __init__(self, config: StreamConfig, editor: Editor, stream: Sequence[EditRequest], checkpoint: Path):
        self._config, self._editor, self._stream, self._checkpoint = config, editor, stream, checkpoint
        self._wanted = [name for name in NAMES if getattr(config, name) is not None]

    def measure(self, state: State, shared: str | os.PathLike | None = None, model_identity: str = "") -> None:
        """Measure one state of the model, unless it stands in the checkpoint already.

        Arguments:
            shared: where other streams find what was measured of the same base model; None to share nothing.
            model_identity: of the base model and of what its bits depend on.

        Raises:
            CoachHookError: a prompt is too long, or a task cannot be run.
        """
        for name in self._wanted:
            path = self._path(name, state)
            if read_checked(path) is not None:
                continue
            asked, measure = self._fluency() if name == "fluency" else self._ability()
            if state == "base":
                asked = [code_digest("metrics"), model_identity, name, self._config.seed, asked]
                found = of_base(self._editor, asked, shared, measure)
            else:
                found = measure()
            write_checked(path, json.dumps(found).encode() + b"\n")
            logger.info("%s of the %s model: %s", name, state, json.dumps(found.get("ngram_entropy", found)))

    def numbers(self) -> dict[str, float]:
        """All numbers by name, those of the base model with `_base` behind it.

        `fluency`, and by task and metric `ability_<task>_<metric>`.
        """
        numbers = {}
        for name in self._wanted:
            for state in reversed(STATES):
                end = "_base" if state == "base" else ""
                found = self._read(name, state)
                if name == "fluency":
                    numbers[f"fluency{end}"] = found["ngram_entropy"]
                    continue
                for task, metrics in found.items():
                    numbers |= {f"ability_{task}_{metric}{end}": value for metric, value in metrics.items()}
        return numbers

    def write(self, out: Path) -> None:
        """`fluency.json` and `ability.json`, where the stream asks for them: the same of "base" and of "edited"."""
        for name in self._wanted:
            found = {state: self._read(name, state) for state in STATES}
            write_text(out / f"{name}.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")

    def _path(self, name: str, state: State) -> Path:
        return self._checkpoint / f"{name}.{state}.json"

    def _read(self, name: str, state: State) -> dict:
        return json.loads(self._path(name, state).read_text())

    def _fluency(self) -> tuple[list, Callable[[], dict]]:
        """Edit prompts drawn from those that the final model is edited with, and what continues them."""
        config, stream = self._config, self._stream
        edited = stream if config.round == "consecutive" else stream[-((len(stream) - 1) % config.batch_size + 1) :]
        chosen = random.Random(config.seed).sample(edited, min(config.fluency, len(edited)))
        prompts = [request.text for request in chosen]

        def measure() -> dict:
            texts = generate_texts(self._editor.model, self._editor.tokenizer, prompts, seed=config.seed)
            return {"ngram_entropy": ngram_entropy(texts), "prompts": len(texts), "texts": texts}

        return prompts, measure

    def _ability(self) -> tuple[list, Callable[[], dict]]:
        """What the tasks are, and what puts the model to them."""
        settings = self._config.ability.model_dump()
        asked = [settings, version("lm_eval"), [file_digest(path).hex() for path in task_files(self._config)]]
        return asked, partial(general_ability, self._editor, self._editor.tokenizer, seed=self._config.seed, **settings)


def task_files(config: StreamConfig) -> list[Path]:
    """The user's own task files and their data."""
    if config.ability is None or config.ability.include_path is None:
        return []
    return sorted(path for path in Path(config.ability.include_path).rglob("*") if path.is_file())
