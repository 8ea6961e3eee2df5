"""The files below `config/`, read and held to the schemas and to each other; a mistake is one line.

Which hyper-parameters a method has stands in its own file; the schema gives ranges to those that several share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from coachhook.code_digest import method_names
from coachhook.errors import CoachHookError


class StudyError(CoachHookError, ValueError):
    """One line: the file, the key, what is wrong with it, and what is allowed."""


@dataclass(frozen=True)
class Files:
    """What the files say, by name; the values that tuning chose are by model and method."""

    ranges: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    models: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    tuned: dict[str, dict[str, dict[str, Any]]]

    def check_value(self, name: str, value: Any, where: str) -> None:
        """Hold a hyper-parameter's value to its range, where several methods share it."""
        check(value, self.ranges.get(name, {}), f"{where}.{name}")


def read_files(config_dir: Path, schema_dir: Path) -> Files:
    """Read all files that studies draw on.

    Raises StudyError, one line that names file, key and what is allowed.
    """
    shared = _schema(schema_dir, "hyperparameters")
    datasets = _read_datasets(config_dir / "datasets.yaml", schema_dir)
    methods = _read_methods(config_dir / "methods", schema_dir, shared)
    models = _read_models(config_dir / "models.yaml", schema_dir, datasets, methods, shared)
    tuned = _read_tuned(config_dir / "tuned", schema_dir, models, methods, shared)
    return Files(shared["properties"], datasets, models, methods, tuned)


def read_study(name: str, config_dir: Path, schema_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The file of study `name`, and its content. Raises StudyError."""
    path = config_dir / "studies" / f"{name}.yaml"
    if not path.exists():
        names = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise StudyError(f"study: unknown study '{name}'; {path.parent} has: {', '.join(names)}")
    return path, read_yaml(path, _schema(schema_dir, "study"))


def read_tiny(config_dir: Path, schema_dir: Path) -> dict[str, Any]:
    """What makes a study tiny: config/tiny.yaml. Raises StudyError."""
    return read_yaml(config_dir / "tiny.yaml", _schema(schema_dir, "tiny"))


def check_config(config: Mapping[str, Any], schema_dir: Path) -> None:
    """Hold what Snakemake read from config.yaml and the command line to its schema."""
    check(config, _schema(schema_dir, "config"), "config/config.yaml")


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


def check_names(names: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    """Refuse the first name that is not known, and say which are."""
    for name in names:
        if name not in known:
            raise StudyError(f"{where}: unknown {what} '{name}'; allowed: {', '.join(known)}")


def _schema(folder: Path, name: str) -> dict[str, Any]:
    return yaml.safe_load((Path(folder) / f"{name}.schema.yaml").read_text(encoding="utf-8"))


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


def _read_datasets(path: Path, schema_dir: Path) -> dict[str, dict[str, Any]]:
    """The data sets, with the sizes of their world in place of its name."""
    content = read_yaml(path, _schema(schema_dir, "datasets"))
    worlds, datasets = content.get("worlds", {}), {}
    for name, entry in content["datasets"].items():
        if "world" in entry:
            check_names([entry["world"]], worlds, f"{path}: datasets.{name}.world", "world")
            same = {other: e for other, e in content["datasets"].items() if e.get("world") == entry["world"]}
            others = entry.get("apart_from", [])
            check_names(others, same, f"{path}: datasets.{name}.apart_from", "data set of the same world")
            entry = entry | {"world": worlds[entry["world"]], "apart_from": [same[other] for other in others]}
        for place, part in ((name, entry), (f"{name}.training", entry.get("training", {}))):
            files, checksums = part.get("files", []), part.get("sha256", [])
            if len(files) != len(checksums):
                problem = f"{len(checksums)} checksums for {len(files)} files; give one for each, in order"
                raise StudyError(f"{path}: datasets.{place}.sha256: {problem}")
        datasets[name] = entry
    return datasets


def _read_methods(folder: Path, schema_dir: Path, shared) -> dict[str, dict[str, Any]]:
    schema, methods = _schema(schema_dir, "method"), {}
    for path in sorted(folder.glob("*.yaml")):
        entry = read_yaml(path, schema)
        check_names([entry["editor"]], method_names(), f"{path}: editor", "editor")
        given = {name: value for name, value in entry["hyperparameters"].items() if value is not None}
        check(given, shared, f"{path}: hyperparameters")
        check_names(entry.get("search", {}), entry["hyperparameters"], f"{path}: search", "hyper-parameter")
        methods[path.stem] = entry
    return methods


def _read_models(path: Path, schema_dir: Path, datasets, methods, shared) -> dict[str, dict[str, Any]]:
    """Models trained here and models from the hub, in one."""
    content = read_yaml(path, _schema(schema_dir, "models"))
    hub = content.get("hub_models", {})
    for name in hub:
        if name in content["models"]:
            raise StudyError(f"{path}: hub_models.{name}: there is a model of this name in `models`; choose another")
    models = content["models"] | hub
    known = dict.fromkeys(name for entry in methods.values() for name in entry["hyperparameters"])
    trained = dict.fromkeys(name for entry in methods.values() for name in entry.get("training", {}))
    for name, entry in models.items():
        where = f"{path}: {'hub_models' if name in hub else 'models'}.{name}"
        check_names(entry["editing"], known, f"{where}.editing", "hyper-parameter")
        training = entry.get("editor_training", {})
        check_names(training, trained | methods, f"{where}.editor_training", "hyper-parameter")
        for method in training.keys() & methods.keys():
            own = methods[method].get("training", {})
            check_names(training[method], own, f"{where}.editor_training.{method}", f"hyper-parameter of {method}")
        check(entry["editing"], shared, f"{where}.editing")
        if "dataset" in entry:
            check_names([entry["dataset"]], datasets, f"{where}.dataset", "data set")
            if datasets[entry["dataset"]].keys().isdisjoint({"world", "facts"}):
                problem = f"no facts are derived from '{entry['dataset']}'; give it `facts` in datasets.yaml"
                raise StudyError(f"{where}.dataset: {problem}")
    return models


def _read_tuned(folder: Path, schema_dir: Path, models, methods, shared) -> dict[str, dict[str, dict[str, Any]]]:
    tuned = {}
    for path in sorted(folder.glob("*.yaml")):
        check_names([path.stem], models, str(path), "model")
        tuned[path.stem] = read_yaml(path, _schema(schema_dir, "tuned"))
        check_names(tuned[path.stem], methods, str(path), "method")
        for method, values in tuned[path.stem].items():
            where = f"{path}: {method}"
            check_names(values, methods[method]["hyperparameters"], where, f"hyper-parameter of {method}")
            check(values, shared, where)
    return tuned
