"""From a method's name and the values a user gives to its configuration; what is wrong is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedModel

from coachhook.editors import METHODS, Registered
from coachhook.editors.base import Method, MethodConfig, TrainedMethod
from coachhook.errors import CoachHookError
from coachhook.layers import suggested_layers


class HyperparameterError(CoachHookError, ValueError):
    """A method or hyper-parameter is unknown or out of range; names it and what is allowed."""


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
