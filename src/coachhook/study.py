"""Studies: from the files under `config/` to the streams to run and the figures to draw from them.

A study names models, data sets, methods, seeds and hyper-parameter values figure by figure; the union of what its
figures need is its set of streams, each with a path that says what was run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from coachhook.errors import CoachHookError
from coachhook.provenance import method_names


class StudyError(CoachHookError, ValueError):
    """One line: the file, the key, what is wrong with it, and what is allowed."""


@dataclass(frozen=True)
class Stream:
    """One stream of a study; `hyperparameters` are complete, `setting` names those that are not the default."""

    model: str
    dataset: str
    method: str
    setting: str
    seed: int
    editor: str
    edits: int
    batch_size: int
    evaluate_every: int
    protocols: tuple[str, ...]
    hyperparameters: dict[str, Any]
    defaults: dict[str, Any]
    """What `hyperparameters` and the batch size are in the setting "default"."""

    @property
    def path(self) -> str:
        """Where its results stand, below a folder of streams."""
        names = ("model", "dataset", "method", "setting", "seed")
        return "/".join(f"{name}~{getattr(self, name)}" for name in names)


@dataclass(frozen=True)
class Study:
    """A study's streams by path, and the paths that each of its figures is drawn from."""

    name: str
    description: str
    streams: dict[str, Stream]
    figures: dict[str, tuple[str, ...]]
    models: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]


def check_config(config: Mapping[str, Any], schema_dir: Path) -> None:
    """Hold what Snakemake read from config.yaml and the command line to its schema."""
    check(config, _schema(schema_dir, "config"), "config/config.yaml")


def _schema(folder: Path, name: str) -> dict[str, Any]:
    return yaml.safe_load((Path(folder) / f"{name}.schema.yaml").read_text(encoding="utf-8"))


def read_yaml(path: Path, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Read a YAML file and hold it to a JSON Schema.

    Raises StudyError when the file is missing, is not YAML, or breaks the schema.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    check(content, schema, str(path))
    return content


def check(content: Any, schema: Mapping[str, Any], where: str) -> None:
    """Hold content to a JSON Schema; StudyError names the first key that breaks it and what is allowed there."""
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(content), key=_depth)
    if errors:
        raise StudyError(f"{where}: {_explain(errors[0])}")


def _depth(error: jsonschema.ValidationError) -> tuple[int, str]:
    return len(error.absolute_path), error.json_path


def _explain(error: jsonschema.ValidationError) -> str:
    key = ".".join(str(part) for part in error.absolute_path)
    prefix = f"{key}: " if key else ""
    rule = error.validator_value
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = next(name for name in error.instance if name not in known)
        return f"{prefix}unknown key '{unknown}'; allowed: {', '.join(known)}"
    if error.validator == "enum":
        what = "key" if "propertyNames" in error.schema_path else "value"
        return f"{prefix}unknown {what} '{error.instance}'; allowed: {', '.join(map(str, rule))}"
    if error.validator in ("required", "dependentRequired"):
        return f"{prefix}{' '.join(error.message.split())}"
    if error.validator == "oneOf":
        return f"{prefix}give exactly one of: {', '.join(choice['required'][0] for choice in rule)}"
    return f"{prefix}{' '.join(error.message.split())} ({error.schema.get('description', 'see the schema')})"


def load_study(name: str, config_dir: Path, schema_dir: Path) -> Study:
    """Read study `name` with the models, data sets and methods it uses, and hold them to each other.

    Raises StudyError, one line that names file, key and what is allowed.
    """
    config_dir, schema_dir = Path(config_dir), Path(schema_dir)
    path = config_dir / "studies" / f"{name}.yaml"
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise StudyError(f"study: unknown study '{name}'; {path.parent} has: {', '.join(known)}")
    content = read_yaml(path, _schema(schema_dir, "study"))
    datasets = read_yaml(config_dir / "datasets.yaml", _schema(schema_dir, "datasets"))
    values = _schema(schema_dir, "hyperparameters")
    models = _read_models(config_dir, schema_dir, datasets, values)
    methods = _read_methods(config_dir / "methods", schema_dir, values)
    _known(content["models"], models, f"{path}: models", "model")
    streams: dict[str, Stream] = {}
    figures = {}
    for figure, wanted in content["figures"].items():
        where = f"{path}: figures.{figure}"
        _known(wanted["datasets"], datasets["datasets"], f"{where}.datasets", "data set")
        _known(wanted["methods"], methods, f"{where}.methods", "method")
        _check_values(wanted.get("vary", {}), values, where)
        drawn = {s.path: s for s in _streams(content, wanted, models, methods, where)}
        streams |= drawn
        figures[figure] = tuple(drawn)
    for stream in streams.values():
        _check_dataset(stream, models, datasets["datasets"], path)
    sources = {dataset: _source(dataset, datasets) for dataset in datasets["datasets"]}
    return Study(name, content["description"], streams, figures, models, sources)


def _read_models(config_dir: Path, schema_dir: Path, datasets, values) -> dict[str, dict[str, Any]]:
    path = config_dir / "models.yaml"
    models = read_yaml(path, _schema(schema_dir, "models"))["models"]
    worlds = datasets.get("worlds", {})
    for name, entry in datasets["datasets"].items():
        if "world" in entry:
            where = f"{config_dir / 'datasets.yaml'}: datasets.{name}.world"
            _known([entry["world"]], worlds, where, "world")
    for name, entry in models.items():
        where = f"{path}: models.{name}"
        check(entry["editing"], values, f"{where}.editing")
        _known([entry["dataset"]], datasets["datasets"], f"{where}.dataset", "data set")
    return models


def _read_methods(folder: Path, schema_dir: Path, values) -> dict[str, dict[str, Any]]:
    methods = {}
    for path in sorted(folder.glob("*.yaml")):
        methods[path.stem] = read_yaml(path, _schema(schema_dir, "method"))
        _known([methods[path.stem]["editor"]], method_names(), f"{path}: editor", "editor")
        given = methods[path.stem]["hyperparameters"]
        _known(given, values["properties"], f"{path}: hyperparameters", "hyper-parameter")
        check({k: v for k, v in given.items() if v is not None}, values, f"{path}: hyperparameters")
    return methods


def _check_values(vary: Mapping[str, list], values, where: str) -> None:
    batch_size = {"type": "integer", "minimum": 1, "description": "requests per step"}
    known = values["properties"] | {"batch_size": batch_size}
    _known(vary, known, f"{where}.vary", "hyper-parameter")
    for name, items in vary.items():
        for item in items:
            check(item, known[name], f"{where}.vary.{name}")


def _known(names: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    for name in names:
        if name not in known:
            raise StudyError(f"{where}: unknown {what} '{name}'; allowed: {', '.join(known)}")


def _source(name: str, datasets: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's entry, with the sizes of its world in place of the world's name."""
    entry = dict(datasets["datasets"][name])
    if "world" in entry:
        entry["world"] = datasets["worlds"][entry["world"]]
    return entry


def _check_dataset(stream: Stream, models, datasets, path: Path) -> None:
    """A model knows nothing of requests about facts that it was not trained on."""
    learnt, asked = models[stream.model]["dataset"], stream.dataset
    if learnt != asked and ("world" not in datasets[asked] or _world(learnt, datasets) != _world(asked, datasets)):
        raise StudyError(
            f"{path}: model '{stream.model}' was trained on the facts of '{learnt}' and knows none of '{asked}'; "
            "choose a data set of the same world"
        )
    count = datasets[stream.dataset].get("count", stream.edits)
    if stream.edits > count:
        raise StudyError(
            f"{path}: edits: {stream.edits} are more than the {count} requests of data set '{stream.dataset}'"
        )


def _world(dataset: str, datasets) -> str | None:
    return datasets[dataset].get("world")


def _streams(content, wanted, models, methods, where: str) -> Iterable[Stream]:
    vary = wanted.get("vary", {})
    sizes = {key: content[key] for key in ("edits", "batch_size", "evaluate_every")}
    for model, method in itertools.product(content["models"], wanted["methods"]):
        hyperparameters = default_hyperparameters(method, methods[method], model, models[model])
        allowed = [*hyperparameters, "batch_size"]
        _known(vary, allowed, f"{where}.vary", f"hyper-parameter of {method}")
        defaults = hyperparameters | {"batch_size": content["batch_size"]}
        for values in itertools.product(*vary.values()):
            changed = dict(zip(vary, values, strict=True))
            setting = setting_name(changed, defaults)
            batch_size = changed.pop("batch_size", content["batch_size"])
            for dataset, seed in itertools.product(wanted["datasets"], wanted["seeds"]):
                yield Stream(
                    **{"model": model, "dataset": dataset, "method": method, "seed": seed},
                    **sizes | {"batch_size": batch_size},
                    protocols=tuple(content["protocols"]),
                    setting=setting,
                    editor=methods[method]["editor"],
                    hyperparameters=hyperparameters | changed,
                    defaults=defaults,
                )


def default_hyperparameters(method: str, entry, model: str, model_entry) -> dict[str, Any]:
    """A method's values, those that its file leaves open (null) filled in by the model's `editing`.

    The model's `editing` also overrides what the method's file gives, for the names that the method has.
    """
    values = dict(entry["hyperparameters"])
    values |= {name: value for name, value in model_entry["editing"].items() if name in values}
    for name, value in values.items():
        if value is None:
            raise StudyError(
                f"config/models.yaml: models.{model}.editing: '{name}' is missing; method '{method}' needs it"
            )
    return values


def setting_name(changed: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """`default`, or `name=value` for what differs from the defaults, joined by commas; lists as `0-1-2`."""
    named = [f"{name}={_value(value)}" for name, value in changed.items() if value != defaults[name]]
    return ",".join(named) or "default"


def _value(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def settings_key(*settings: Any) -> str:
    """Eight hexadecimal digits that change with any of the settings: part of the name of what they produce."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def covariance_command(model: str, settings: Mapping[str, Any]) -> str:
    """What computes a model's covariance; the DVC stage covariance@<model> runs the same."""
    return (
        f"coachhook covariance results/models/{model} --texts results/models/{model}/text.txt "
        f"--layers {settings['layers']} --max-tokens {settings['max_tokens']} "
        f"--out data/covariances/{model}.safetensors"
    )
