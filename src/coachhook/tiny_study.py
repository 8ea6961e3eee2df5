"""A study in small: the same figures, methods, layers and rules, on models and data that any machine has.

Every model from the hub becomes one of random weights with the same family and depth, built from its config; every
data set of real records a few example records in the same format; tasks of general ability become example tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coachhook.study_files import Files, StudyError

_PREFIX = "tiny-"


def tiny_study(
    content: Mapping[str, Any], files: Files, limits: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], Files]:
    """The content of a study's file, and the files it draws on, made small by the limits of config/tiny.yaml.

    Raises StudyError where the study has nothing to be made small: models that are trained here are small.
    """
    for name in content["models"]:
        if "hub" not in files.models[name]:
            raise StudyError(
                f"{where}: models: '{name}' is trained here and has no tiny stand-in; tiny=true is for models from "
                "the hub, and study=smoke is small by itself"
            )
    return _small_content(content, limits), replace(
        files,
        models={_PREFIX + name: _small_model(entry, limits) for name, entry in files.models.items() if "hub" in entry},
        datasets={
            _PREFIX + name: _small_dataset(entry) for name, entry in files.datasets.items() if "example" in entry
        },
        methods={name: _small_method(entry, limits) for name, entry in files.methods.items()},
        tuned={
            _PREFIX + model: {method: _at_most(values, limits) for method, values in methods.items()}
            for model, methods in files.tuned.items()
        },
    )


def _small_content(content: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {name: min(content[name], limits[name]) for name in ("edits", "batch_size", "evaluate_every")}
    parts = {
        part: {name: _small_part(wanted, limits, content["batch_size"]) for name, wanted in content[part].items()}
        for part in ("figures", "tables")
        if part in content
    }
    measured = {name: limits[name] for name in ("fluency", "ability") if name in content}
    return {**content, **sizes, **parts, **measured, "models": [_PREFIX + name for name in content["models"]]}


def _small_part(wanted: Mapping[str, Any], limits: Mapping[str, Any], default_batch: int) -> dict[str, Any]:
    """What a figure or table lists, of as many seeds as the limits say; the default batch size stays the default."""
    small = {**wanted, "seeds": wanted["seeds"][: limits["seeds"]]}
    small["datasets"] = [_PREFIX + name for name in wanted["datasets"]]
    if "models" in wanted:
        small["models"] = [_PREFIX + name for name in wanted["models"]]
    if "edits" in wanted:
        small["edits"] = min(wanted["edits"], limits["edits"])
    if "vary" in wanted:
        small["vary"] = {name: _by_small_model(values) for name, values in wanted["vary"].items()}
        if "batch_size" in small["vary"]:
            batch = min(default_batch, limits["batch_size"])
            small["vary"]["batch_size"] = [batch if v == default_batch else v for v in small["vary"]["batch_size"]]
    return small


def _by_small_model(values: Any) -> Any:
    return {_PREFIX + model: own for model, own in values.items()} if isinstance(values, Mapping) else values


def _small_model(entry: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """The model with what it is built from in place of where it is fetched from."""
    kept = {name: entry[name] for name in ("seed", "dtype", "architecture") if name in entry}
    training = {
        name: _at_most(value, limits) if isinstance(value, Mapping) else value
        for name, value in _at_most(entry.get("editor_training", {}), limits).items()
    }
    return {
        **kept,
        "config": entry["config"] | entry["tiny"],
        "covariance": {"layers": entry["covariance"]["layers"], "max_tokens": limits["covariance_tokens"]},
        "editing": _at_most(entry["editing"], limits),
        "editor_training": training,
    }


def _small_dataset(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: entry[name] for name in ("zsre_target", "contradictions") if name in entry}
    training = {"training": _small_dataset(entry["training"])} if "training" in entry else {}
    return {**kept, **training, "file": entry["example"]}


def _small_method(entry: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: _at_most(entry[name], limits) for name in ("hyperparameters", "training") if name in entry}
    return {**entry, **parts}


def _at_most(values: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters, those that cost time not above their limit."""
    return {
        name: min(value, limits["at_most"][name]) if name in limits["at_most"] and value is not None else value
        for name, value in values.items()
    }
