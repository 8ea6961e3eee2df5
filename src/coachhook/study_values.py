"""A study's values: which hyper-parameters a stream has, how its setting is named, and what a covariance is made by."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from coachhook.study_files import StudyError, check_names


def default_hyperparameters(method: str, entry, model: str, model_entry, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """A method's values on a model: what tuning chose, else the method's file, else (null there) the model's `editing`.

    Raises StudyError where the model has no value either.
    """
    values = entry["hyperparameters"] | tuned
    for name, value in values.items():
        if value is None and name not in model_entry["editing"]:
            raise StudyError(
                f"config/models.yaml: models.{model}.editing: '{name}' is missing; method '{method}' needs it"
            )
    return {name: model_entry["editing"][name] if value is None else value for name, value in values.items()}


def editor_training(method: str, entry: Mapping[str, Any], model_entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a method's editor is trained for a model, which may say otherwise for all methods or for this one."""
    if "training" not in entry:
        return None
    of_model = model_entry.get("editor_training", {})
    own = {name: value for name, value in of_model.items() if name in entry["training"]}
    return entry["training"] | own | of_model.get(method, {})


def candidates(search: Mapping[str, list], method: str, trials: int) -> Iterable[dict[str, Any]]:
    """Every combination of a search's values; StudyError unless there are exactly `trials`."""
    count = math.prod(map(len, search.values()))
    if count != trials:
        raise StudyError(
            f"config/methods/{method}.yaml: search: its values make {count} combinations, but every method gets "
            f"{trials} trials; list values that make {trials}"
        )
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


def varied(wanted: Mapping[str, Any], model: str, where: str) -> dict[str, list]:
    """The values that a figure varies on a model: a list for all models, or a list for each by its name."""
    found = {}
    for name, values in wanted.get("vary", {}).items():
        if isinstance(values, Mapping):
            check_names([model], values, f"{where}.vary.{name}", "model with values of its own")
        found[name] = values[model] if isinstance(values, Mapping) else values
    return found


def setting_name(changed: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> str:
    """`default`, or `name=value` for what differs from the defaults, joined by commas; lists as `0-1-2`.

    Without defaults every value is named.
    """
    defaults = {} if defaults is None else defaults
    named = [
        f"{name}={_value(value)}" for name, value in changed.items() if name not in defaults or value != defaults[name]
    ]
    return ",".join(named) or "default"


def _value(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def settings_key(*settings: Any) -> str:
    """Eight hexadecimal digits that change with any of the settings: part of the name of what they produce."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def covariance_command(model: str, settings: Mapping[str, Any], architecture: Mapping[str, str] | None = None) -> str:
    """What computes a model's covariance.

    The DVC stages covariance@<model> and hub_covariance@<model> run the same for models of known families. The text is
    a data set on the hub where the settings name one, else what the model itself was trained on.
    """
    declared = ",".join(f"{part}={name}" for part, name in (architecture or {}).items())
    texts = f"--texts results/models/{model}/text.txt"
    if "texts" in settings:
        texts = (
            f"--texts {settings['texts']} --texts-config {settings['texts_config']} "
            f"--texts-revision {settings['texts_revision']}"
        )
    return (
        f"coachhook covariance results/models/{model} {texts} "
        f"--layers {settings['layers']} --max-tokens {settings['max_tokens']} "
        f"--out data/covariances/{model}.safetensors{f' --architecture {declared}' if declared else ''}"
    )
