"""A directory of saved edits: `edits.json`, one safetensors file a step, the tokenizer, a trained editor; no pickle.

Files are named after their content and `edits.json`, which names them, is written last. So a directory is complete
when `edits.json` is there, and saving over an earlier save leaves that one whole until the new one is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal

from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ValidationError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import coachhook
from coachhook.architectures import declare_architecture
from coachhook.base_identity import BaseModelIdentity
from coachhook.edit_request import EditRequest, Probe
from coachhook.edited_model import refuse_edited
from coachhook.editors.base import MethodConfig
from coachhook.journal import JournalError, Step, pack_step, read_update
from coachhook.whole_files import sync, write_bytes, write_text

_FORMAT = 1
_INDEX = "edits.json"
_WRONG_TYPES = (KeyError, TypeError, AttributeError)
_DAMAGED = (json.JSONDecodeError, UnicodeDecodeError, ValidationError, InvalidVersion, *_WRONG_TYPES)
_WRITTEN = r"((\d{6}|trained_editor)-[0-9a-f]{16}\.safetensors|tokenizer-[0-9a-f]{16})"
_OURS = re.compile(rf"{_WRITTEN}|\.({_WRITTEN}|tokenizer|edits\.json)\.[\w-]+\.tmp")


def _probes(records: list[dict]) -> list[Probe]:
    return [Probe(**record) for record in records]


def _readable(request: dict) -> dict:
    """A request that a newer version wrote, without what only newer versions read."""
    known = _known(EditRequest, request)
    lists = {name: known[name] for name in ("locality", "portability") if name in known}
    return known | {name: [_known(Probe, probe) for probe in probes] for name, probes in lists.items()}


def _known(kind: type, record: dict) -> dict:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in record.items() if name in names}


class SavedStep(BaseModel):
    """One step: its safetensors file, when it was edited, its requests, and metrics by protocol."""

    file: str
    time: str
    requests: list[dict]
    metrics: dict[str, dict[str, float | None]] = {}

    def read(self, directory: str | os.PathLike) -> Step:
        """Raises JournalError for a file that is missing or damaged."""
        path = Path(directory) / Path(self.file).name
        if not path.is_file() or self.file != _name(path.name.partition("-")[0], path.read_bytes()):
            raise JournalError(f"{path}: missing or damaged; save the edits again")
        try:
            requests = tuple(
                EditRequest(
                    **record
                    | {"locality": _probes(record["locality"]), "portability": _probes(record.get("portability", []))}
                )
                for record in self.requests
            )
        except (KeyError, TypeError) as error:
            raise JournalError(f"{_INDEX}: the requests of {path.name} are damaged ({error})") from None
        return Step(read_update(path), requests, self.time, self.metrics)


class SavedEdits(BaseModel):
    """The content of `edits.json`. Of format 1 newer versions may write more fields, which are not read here; what
    would be misread without them gets another format.
    """

    format: Literal[1]
    coachhook: str
    method: str
    layers: list[int]
    gate: str | None
    hyperparameters: dict
    base_model: BaseModelIdentity
    tokenizer: str
    trained_editor: str | None
    covariance: str | None = None  # `Covariance.sample_digest`; older files have none
    steps: list[SavedStep]

    def base(self, model: PreTrainedModel | None, directory: str | os.PathLike) -> PreTrainedModel:
        """The base model: the given one, or else loaded by its name; `directory` is for messages.

        Raises:
            JournalError: it is not the one that was edited, or cannot be loaded.
            EditorError: an editor is open on it, or it is a copy of an edited model.
        """
        model = self.base_model.load() if model is None else model
        refuse_edited(model)
        if self.base_model.architecture is not None:
            declare_architecture(model, self.base_model.architecture)
        differences = self.base_model.differences(BaseModelIdentity.of(model, self.layers))
        if differences:
            right = f"({'; '.join(differences)}); load the model {self.base_model.name or 'that was edited'}"
            raise JournalError(f"{directory}: was saved from another base model {right}")
        return model

    def first(self, count: int | None, directory: str | os.PathLike) -> list[SavedStep]:
        """The first `count` steps; None for all.

        Raises:
            JournalError: there are not so many.
        """
        if count is not None and not 0 <= count <= len(self.steps):
            raise JournalError(f"step: {count} is not between 0 and {len(self.steps)}, the steps saved in {directory}")
        return self.steps[:count]


def write_edits(
    directory: str | os.PathLike,
    method: str,
    config: MethodConfig,
    base_model: BaseModelIdentity,
    steps: Iterable[Step],
    tokenizer: PreTrainedTokenizerBase,
    trained_editor: str | os.PathLike | None,
    covariance: str | None = None,
) -> None:
    """Save edits; what an earlier save left there and this one does not need is removed at the end.

    Arguments:
        covariance: its `sample_digest`.

    Raises:
        JournalError: `directory` is a file.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise JournalError(f"{directory}: it is a file; name a directory")
    directory.mkdir(parents=True, exist_ok=True)
    saved = SavedEdits(
        format=_FORMAT,
        coachhook=coachhook.__version__,
        method=method,
        layers=list(config.layers),
        gate=getattr(config, "gate", None),
        hyperparameters=config.model_dump(mode="json"),
        base_model=base_model,
        tokenizer=_write_tokenizer(directory, tokenizer),
        trained_editor=trained_editor and _write(directory, "trained_editor", Path(trained_editor).read_bytes()),
        covariance=covariance,
        steps=[
            SavedStep(
                file=_write(directory, f"{number:06d}", pack_step(number, step.update)),
                time=step.time,
                requests=[asdict(request) for request in step.requests],
                metrics=step.metrics,
            )
            for number, step in enumerate(steps, 1)
        ],
    )
    _write_index(directory, saved)


def truncate_edits(directory: str | os.PathLike, to_step: int) -> None:
    """Drop the steps after `to_step` from a directory, whole or not at all; no model is needed.

    Raises:
        JournalError: as `read_edits`, or there is no such step.
    """
    saved = read_edits(directory)
    _write_index(Path(directory), saved.model_copy(update={"steps": saved.first(to_step, directory)}))


def holds_edits(directory: str | os.PathLike) -> bool:
    """Whether edits are saved there, readable or not."""
    return (Path(directory) / _INDEX).is_file()


def read_edits(directory: str | os.PathLike) -> SavedEdits:
    """Read `edits.json`; the steps' files are read one by one (`SavedStep.read`).

    Raises:
        JournalError: it is missing, damaged, or of a newer format.
    """
    path = Path(directory) / _INDEX
    if not path.is_file():
        raise JournalError(f"{path}: no such file; nothing was saved there, or the save was cut short: save again")
    try:
        content = json.loads(path.read_bytes())
        found = content["format"]
        if isinstance(found, int) and found > _FORMAT:
            raise JournalError(
                f"{path}: format {found} is newer than {_FORMAT}, the newest that coachhook {coachhook.__version__} "
                "reads; update coachhook"
            )
        if Version(content["coachhook"]) > Version(coachhook.__version__):
            for step in content["steps"]:
                step["requests"] = [_readable(request) for request in step["requests"]]
        return SavedEdits(**content)
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:120]
        raise JournalError(f"{path}: damaged ({reason}); save the edits again") from None


def read_tokenizer(directory: str | os.PathLike, saved: SavedEdits) -> PreTrainedTokenizerBase:
    """Raises JournalError where it is missing or damaged."""
    check_files(directory, saved)
    return AutoTokenizer.from_pretrained(Path(directory) / saved.tokenizer)


def check_files(directory: str | os.PathLike, saved: SavedEdits) -> None:
    """Hold tokenizer and trained editor to their names. Raises JournalError where one is missing or damaged."""
    folder = Path(directory) / Path(saved.tokenizer).name
    if not folder.is_dir() or saved.tokenizer != _tokenizer_name(folder):
        raise JournalError(f"{folder}: missing or damaged; save the edits again")
    if saved.trained_editor is not None:
        path = Path(directory) / Path(saved.trained_editor).name
        if not path.is_file() or saved.trained_editor != _name("trained_editor", path.read_bytes()):
            raise JournalError(f"{path}: missing or damaged; save the edits again")


def _write_index(directory: Path, saved: SavedEdits) -> None:
    """Write `edits.json`; then remove what an earlier save left and this one does not name."""
    write_text(directory / _INDEX, json.dumps(saved.model_dump(), ensure_ascii=False, indent=1) + "\n")
    needed = {saved.tokenizer, saved.trained_editor, *(step.file for step in saved.steps)}
    for path in directory.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in needed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(directory: Path, stem: str, content: bytes) -> str:
    """Write a safetensors file named after its content, unless it is there; its name."""
    name = _name(stem, content)
    if not (directory / name).exists():
        write_bytes(directory / name, content)
    return name


def _name(stem: str, content: bytes) -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"


def _write_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """Write a folder named after the tokenizer's files, unless it is there; its name."""
    temporary = directory / f".tokenizer.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with this number
    tokenizer.save_pretrained(temporary)
    for path in _files(temporary):
        sync(path)
    name = _tokenizer_name(temporary)
    if (directory / name).exists():
        shutil.rmtree(temporary)
    else:
        os.replace(temporary, directory / name)
    sync(directory)
    return name


def _files(folder: Path) -> list[Path]:
    """In order, without what file browsers leave."""
    return sorted(path for path in folder.rglob("[!.]*") if path.is_file())


def _tokenizer_name(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return f"tokenizer-{digest.hexdigest()[:16]}"
