"""Studies: from the files under `config/` to the streams to run and the figures and tables to make of them.

A study names models, data sets, methods, seeds and hyper-parameter values figure by figure; the union of what its
figures and tables need is its set of streams, each with a path that says what was run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coachhook.study_files import Files, StudyError, check, check_config, check_names, read_files, read_study

__all__ = ["Stream", "Study", "StudyError", "Trial", "check_config", "load_study", "setting_name", "settings_key"]


_ROUNDS = {"consecutive": "consecutive", "single_round": "single"}  # of each table's streams


@dataclass(frozen=True)
class Stream:
    """One stream of a study; `hyperparameters` are complete, `setting` names those that are not the default."""

    model: str
    dataset: str
    method: str
    setting: str
    seed: int
    editor: str
    round: str
    edits: int
    batch_size: int
    evaluate_every: int
    protocols: tuple[str, ...]
    hyperparameters: dict[str, Any]
    defaults: dict[str, Any]
    """What `hyperparameters`, the batch size and the round are in the setting "default"."""
    needs_covariance: bool
    architecture: dict[str, str] | None
    """Where the model keeps its parts; None for models whose family is known."""
    training: dict[str, Any] | None
    """Hyper-parameters of the training that makes the editor before any stream; None for methods without one."""

    @property
    def path(self) -> str:
        """Where its results stand, below a folder of streams."""
        names = ("model", "dataset", "method", "setting", "seed")
        return "/".join(f"{name}~{getattr(self, name)}" for name in names)

    @property
    def trained_editor(self) -> str | None:
        """Where its trained editor stands, below a folder of editors; all streams that edit its layers share it."""
        if self.training is None:
            return None
        return f"{self.model}/{self.method}.{settings_key(self.hyperparameters['layers'], self.training)}.safetensors"


@dataclass(frozen=True)
class Trial:
    """One candidate of the search for a method's hyper-parameters, and the streams that try it."""

    model: str
    method: str
    values: dict[str, Any]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study's streams by path, and the paths that each of its figures, tables and trials is made of.

    Tables are named by what they compare, as in `coachhook.tables`.
    """

    name: str
    description: str
    streams: dict[str, Stream]
    figures: dict[str, tuple[str, ...]]
    tables: dict[str, tuple[str, ...]]
    models: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    trials: tuple[Trial, ...] = ()


def load_study(name: str, config_dir: Path, schema_dir: Path) -> Study:
    """Read study `name` with the models, data sets and methods it uses, and hold them to each other.

    Raises StudyError, one line that names file, key and what is allowed.
    """
    config_dir, schema_dir = Path(config_dir), Path(schema_dir)
    path, content = read_study(name, config_dir, schema_dir)
    files = read_files(config_dir, schema_dir)
    check_names(content["models"], files.models, f"{path}: models", "model")
    plan = _Plan(content, files, path)
    figures = {figure: plan.add(wanted, f"figures.{figure}") for figure, wanted in content.get("figures", {}).items()}
    tables = {}
    for table, wanted in content.get("tables", {}).items():
        kind = table.removeprefix("table_")
        tables[kind] = plan.add(wanted | {"round": _ROUNDS[kind]}, f"tables.{table}")
    if figures and not tables:
        tables["consecutive"] = tuple(plan.streams)
    trials = plan.add_trials(content["tuning"]) if "tuning" in content else ()
    return Study(name, content["description"], plan.streams, figures, tables, files.models, files.datasets, trials)


@dataclass
class _Plan:
    """The streams gathered so far from a study's file."""

    content: Mapping[str, Any]
    files: Files
    path: Path
    streams: dict[str, Stream] = field(default_factory=dict)

    def add(self, wanted: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """Note every combination of what a figure or table lists, and return the paths of its streams."""
        where = f"{self.path}: {key}"
        vary, paths = wanted.get("vary", {}), []
        for model, method in self._edited(wanted, where):
            defaults = self._defaults(model, method, self.files.tuned)
            check_names(vary, [n for n in defaults if n != "round"], f"{where}.vary", f"hyper-parameter of {method}")
            for values in itertools.product(*vary.values()):
                changed = {"round": wanted.get("round", "consecutive")} | dict(zip(vary, values, strict=True))
                setting = setting_name(changed, defaults)
                paths += self._note(wanted, model, method, setting, defaults, changed, where)
        return tuple(paths)

    def add_trials(self, wanted: Mapping[str, Any]) -> tuple[Trial, ...]:
        """Note the streams of every candidate of every method: as many of each as the budget says.

        What an earlier search chose counts for nothing here.
        """
        where = f"{self.path}: tuning"
        trials = []
        for model, method in self._edited(wanted, where):
            defaults = self._defaults(model, method, {})
            for values in _candidates(self.files.methods[method].get("search", {}), method, wanted["trials"]):
                for name, value in values.items():
                    self.files.check_value(name, value, f"config/methods/{method}.yaml: search")
                paths = self._note(wanted, model, method, setting_name(values), defaults, values, where)
                trials.append(Trial(model, method, values, tuple(paths)))
        return tuple(trials)

    def _edited(self, wanted: Mapping[str, Any], where: str) -> Iterable[tuple[str, str]]:
        """Models and methods of a figure, table or search, all that it names being known."""
        models = wanted.get("models", self.content["models"])
        methods = self.files.methods if wanted["methods"] == "all" else wanted["methods"]
        check_names(models, self.content["models"], f"{where}.models", "model of this study")
        check_names(wanted["datasets"], self.files.datasets, f"{where}.datasets", "data set")
        check_names(methods, self.files.methods, f"{where}.methods", "method")
        for name, values in wanted.get("vary", {}).items():
            for value in values:
                if name == "batch_size":
                    check(value, {"type": "integer", "minimum": 1}, f"{where}.vary.{name}")
                self.files.check_value(name, value, f"{where}.vary")
        return itertools.product(models, methods)

    def _defaults(self, model: str, method: str, tuned: Mapping[str, Mapping]) -> dict[str, Any]:
        chosen = tuned.get(model, {}).get(method, {})
        values = default_hyperparameters(method, self.files.methods[method], model, self.files.models[model], chosen)
        return values | {"batch_size": self.content["batch_size"], "round": "consecutive"}

    def _note(self, wanted, model, method, setting, defaults, changed, where: str) -> list[str]:
        """One setting's streams, one per data set and seed."""
        values = defaults | changed
        sizes = {name: values.pop(name) for name in ("batch_size", "round")}
        paths = []
        for dataset, seed in itertools.product(wanted["datasets"], wanted["seeds"]):
            stream = Stream(
                **{"model": model, "dataset": dataset, "method": method, "setting": setting, "seed": seed},
                **sizes,
                edits=wanted.get("edits", self.content["edits"]),
                evaluate_every=self.content["evaluate_every"],
                protocols=tuple(self.content["protocols"]),
                editor=self.files.methods[method]["editor"],
                hyperparameters=values,
                defaults=defaults,
                needs_covariance=self.files.methods[method].get("needs_covariance", False),
                architecture=self.files.models[model].get("architecture"),
                training=_training(self.files.methods[method], self.files.models[model]),
            )
            self._check_dataset(stream)
            other = self.streams.setdefault(stream.path, stream)
            if other != stream:
                raise StudyError(
                    f"{where}.edits: {stream.edits}, but elsewhere in this study {other.edits} of the same stream "
                    f"({stream.path}); make them equal"
                )
            paths.append(stream.path)
        return paths

    def _check_dataset(self, stream: Stream) -> None:
        """A model knows nothing of requests about facts that it was not trained on."""
        learnt, asked = self.files.models[stream.model]["dataset"], stream.dataset
        worlds = [self.files.datasets[name].get("world") for name in (learnt, asked)]
        if learnt != asked and (worlds[0] is None or worlds[0] != worlds[1]):
            raise StudyError(
                f"{self.path}: model '{stream.model}' was trained on the facts of '{learnt}' and knows none of "
                f"'{asked}'; choose a data set of the same world"
            )
        count = self.files.datasets[asked].get("count", stream.edits)
        if stream.edits > count:
            raise StudyError(
                f"{self.path}: edits: {stream.edits} are more than the {count} requests of data set '{asked}'"
            )


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


def _training(entry: Mapping[str, Any], model_entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a method's editor is trained for a model, which may say otherwise for the names that the method has."""
    if "training" not in entry:
        return None
    own = {name: value for name, value in model_entry.get("editor_training", {}).items() if name in entry["training"]}
    return entry["training"] | own


def _candidates(search: Mapping[str, list], method: str, trials: int) -> Iterable[dict[str, Any]]:
    """Every combination of a search's values; StudyError unless there are exactly `trials`."""
    count = math.prod(map(len, search.values()))
    if count != trials:
        raise StudyError(
            f"config/methods/{method}.yaml: search: its values make {count} combinations, but every method gets "
            f"{trials} trials; list values that make {trials}"
        )
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


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
    """What computes a model's covariance; the DVC stage covariance@<model> runs the same for known families."""
    declared = ",".join(f"{part}={name}" for part, name in (architecture or {}).items())
    return (
        f"coachhook covariance results/models/{model} --texts results/models/{model}/text.txt "
        f"--layers {settings['layers']} --max-tokens {settings['max_tokens']} "
        f"--out data/covariances/{model}.safetensors{f' --architecture {declared}' if declared else ''}"
    )
