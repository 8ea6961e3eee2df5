"""What to edit with, as it was asked for on the command line, and the editor that this makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.cli.shared import choose_device, load, open_edits, parse_layers
from coachhook.editors import DEFAULT_METHOD
from coachhook.errors import CoachHookError

if TYPE_CHECKING:
    from coachhook.editor import Editor
    from coachhook.saved_edits import SavedEdits


def parse_settings(settings: list[str], layers: str | None) -> dict:
    """Hyper-parameters from NAME=VALUE, where a value is JSON or else a word.

    Raises:
        CoachHookError: there is no "=", or a name comes twice.
    """
    found: dict = {} if layers is None else {"layers": parse_layers(layers)}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise CoachHookError(f"--set: {setting!r} is not NAME=VALUE, such as target_steps=30")
        if name in found:
            raise CoachHookError(f"--set: {name} is given twice; give it once")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


@dataclass(frozen=True)
class Choice:
    """Method, files and hyper-parameters; None and absent ones are left to the defaults, or to earlier edits."""

    method: str | None
    covariance: Path | None
    trained_editor: Path | None
    hyperparameters: dict

    def open(
        self, model: str, *, base: str | None, dtype: str, device: str, architecture: dict[str, str] | None
    ) -> Editor:
        """An editor on a base model, or on a directory of edits, whose method and hyper-parameters stay.

        Raises:
            CoachHookError: something is missing, unknown, or not as in the directory of edits.
        """
        from coachhook.editor import Editor
        from coachhook.saved_edits import holds_edits, read_edits

        if holds_edits(model):
            if dtype != "auto" or architecture is not None:
                raise CoachHookError(f"--dtype, --architecture: {model} holds edits, which know theirs; leave them out")
            self.check_same(read_edits(model), model)
            return self._open_edits(model, base, device)
        if base is not None:
            raise CoachHookError(f"--base: {model} holds no edits, so it is the base model; leave --base out")
        method = self.method or DEFAULT_METHOD
        self._check_covariance(method)
        # A path that holds from anywhere: the edits know their base model by it.
        name = str(Path(model).resolve()) if Path(model).is_dir() else model
        loaded, tokenizer = load(name, dtype, choose_device(device), architecture)
        files = {"covariance": self.covariance, "trained_editor": self.trained_editor}
        return Editor(loaded, tokenizer, method, **files, **self.hyperparameters)

    def resume(
        self,
        start: str,
        model: str,
        *,
        base: str | None,
        dtype: str,
        device: str,
        architecture: dict[str, str] | None,
    ) -> Editor:
        """`open`, or the directory `start` that the same command had begun to write."""
        from coachhook.saved_edits import holds_edits

        if start == model or holds_edits(model):
            return self.open(start, base=base, dtype=dtype, device=device, architecture=architecture)
        return self._open_edits(start, model, device)

    def check_same(self, saved: SavedEdits, directory: str | Path) -> None:
        """Refuse a method or hyper-parameters that earlier edits were not made with. Raises CoachHookError."""
        wanted = self.hyperparameters | ({} if self.method is None else {"method": self.method})
        there = saved.hyperparameters | {"method": saved.method}
        for name, value in wanted.items():
            if name in there and there[name] != value:
                problem = f"{directory} was edited with {there[name]!r}, not {value!r}"
                raise CoachHookError(f"{name}: {problem}; leave it out, or start anew on the base model")
        unknown = [name for name in wanted if name not in there]
        if unknown:
            raise CoachHookError(f"{unknown[0]}: method {saved.method} has no such hyper-parameter; leave it out")
        if self.trained_editor is not None:
            raise CoachHookError(f"--trained-editor: {directory} keeps its own; leave it out")

    def _open_edits(self, directory: str, base: str | None, device: str) -> Editor:
        from coachhook.saved_edits import read_edits

        self._check_covariance(read_edits(directory).method)
        return open_edits(Path(directory), base, device, self.covariance)

    def _check_covariance(self, method: str) -> None:
        """Say what is missing before a model is loaded."""
        from coachhook.hyperparameters import registered

        if self.covariance is None and registered(method).load().needs_covariance:
            raise CoachHookError(
                f"--covariance: method {method} needs one; make it once per model with `coachhook covariance`"
            )
