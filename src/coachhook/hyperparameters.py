"""From a method's name and the values a user gives to its configuration; what is wrong is refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedModel

from coachhook.editors import METHODS, Registered
from coachhook.editors.base import Method, MethodConfig, TrainedMethod
from coachhook.errors import CoachHookError
from coachhook.layers import suggested_layers


class HyperparameterError(CoachHookError, ValueError):
    """A method or hyper-parameter is unknown or out of range; names it and what is allowed."""


@dataclass(frozen=True)
class Hyperparameter:
    """One hyper-parameter of a method, in words.

    Attributes:
        allowed: kind and limits of its values.
        default: None also where there is none, as `required` says.
        required: whether it has no default; `layers` may come from a covariance instead.
    """

    name: str
    allowed: str
    default: object
    required: bool
    description: str

    def told_default(self) -> str:
        """The default as it is written on the command line."""
        if self.required:
            return "none"
        if isinstance(self.default, bool) or self.default is None:
            return json.dumps(self.default)
        if isinstance(self.default, tuple):
            return json.dumps(list(self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def hyperparameters(method: str) -> list[Hyperparameter]:
    """What can be set for a method (`Editor(..., NAME=VALUE)`, on the command line `--set NAME=VALUE`).

    Raises:
        HyperparameterError: there is no such method.
    """
    entry = registered(method)
    config = entry.load().config_class
    kinds = config.model_json_schema()["properties"]
    return [
        Hyperparameter(
            name,
            _allowed(kinds[name]),
            entry.preset.get(name, None if field.is_required() else field.default),
            field.is_required(),
            field.description or "",
        )
        for name, field in config.model_fields.items()
    ]


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def _allowed(kind: dict) -> str:
    """A JSON schema's kind of value in a few words."""
    if "anyOf" in kind:
        return " or ".join(map(_allowed, kind["anyOf"]))
    if "enum" in kind:
        return " or ".join(map(str, kind["enum"]))
    if "const" in kind:
        return str(kind["const"])
    if kind["type"] == "array":
        items = kind.get("prefixItems", [])  # of a fixed length
        return f"list of {len(items) or ''} {_allowed(kind.get('items') or items[0])}s".replace("  ", " ")
    limits = " and ".join(f"{sign} {kind[name]:g}" for name, sign in _LIMITS.items() if name in kind)
    return f"{_KINDS.get(kind['type'], kind['type'])} {limits}".strip()


def registered(method: str) -> Registered:
    """The registry's entry of a method.

    Raises:
        HyperparameterError: there is none.
    """
    if method not in METHODS:
        raise HyperparameterError(f"method: {method!r} is unknown; use one of {', '.join(METHODS)}")
    return METHODS[method]


def configure(method: str, config_class: type[MethodConfig], values: dict) -> MethodConfig:
    """The method's configuration.

    Raises:
        HyperparameterError: one line that names the first value it refuses.
    """
    try:
        return config_class(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"][:1]))
        known = ", ".join(config_class.model_fields)
        raise HyperparameterError(
            f"{name}: {first['msg'].lower()} (method {method}, got {first.get('input')!r}); it has {known}"
        ) from None


def check_layers(method: str, config_class: type[MethodConfig], values: dict, model: PreTrainedModel) -> None:
    """Refuse to choose layers for the user, and say which might be tried.

    Raises:
        HyperparameterError: the method needs layers, and neither the user nor a covariance says which.
    """
    if "layers" not in values and config_class.model_fields["layers"].is_required():
        suggestion = ", ".join(map(str, suggested_layers(model)))
        raise HyperparameterError(
            f"layers: field required (method {method}); suggested_layers(model) gives {suggestion}, as a first guess"
        )


def check_trained_editor(method: str, method_class: type[Method], path: str | os.PathLike | None) -> None:
    """Refuse a trained editor that is missing, or given to a method that takes none.

    Raises:
        HyperparameterError: in one line.
    """
    needed = issubclass(method_class, TrainedMethod)
    if needed and path is None:
        raise HyperparameterError(f"trained_editor: method {method} needs one; make it with TrainedMethod.train")
    if not needed and path is not None:
        raise HyperparameterError(f"trained_editor: method {method} takes none; leave it out")
    if needed and not Path(path).is_file():
        raise HyperparameterError(f"trained_editor: {path} is not a file; make it with TrainedMethod.train")
