"""Studies: from the files under `config/` to the streams to run and the figures and tables to make of them.

A study names models, data sets, methods, seeds and hyper-parameter values figure by figure; the union of what its
figures and tables need is its set of streams, each with a path that says what was run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coachhook.study_files import Files, StudyError, check, check_config, check_names, read_files, read_study, read_tiny
from coachhook.study_values import (
    candidates,
    covariance_command,
    default_hyperparameters,
    editor_training,
    setting_name,
    settings_key,
    varied,
)
from coachhook.tiny_study import tiny_study

__all__ = [
    "Draw",
    "Stream",
    "Study",
    "StudyError",
    "Trial",
    "check_config",
    "covariance_command",
    "default_hyperparameters",
    "load_study",
    "setting_name",
    "settings_key",
]


_ROUNDS = {"consecutive": "consecutive", "single_round": "single"}  # of each table's streams
_OF_TABLES = ("default", setting_name({"round": "single"}))  # the settings that tables show


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
    trained_on: str | None
    """The data set whose training requests that editor learns from; None: the one whose facts the model learnt."""
    fluency: int | None = None
    """How many edit prompts the base and the final model continue; None where a value is varied or nothing is said."""
    ability: dict[str, Any] | None = None
    """The tasks that the base and the final model are put to; None likewise."""

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
        settings = [self.hyperparameters["layers"], self.training]
        if self.trained_on is not None:
            settings.append(self.trained_on)
        return f"{self.model}/{self.method}.{settings_key(*settings)}.safetensors"


@dataclass(frozen=True)
class Trial:
    """One candidate of the search for a method's hyper-parameters, and the streams that try it."""

    model: str
    method: str
    values: dict[str, Any]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """The requests of a stream, whoever edits with them: what the figure `contradictions` is about."""

    dataset: str
    seed: int
    edits: int


@dataclass(frozen=True)
class Study:
    """A study's streams by path, and the paths that each of its figures, tables and trials is made of.

    Tables are named by what they compare, as in `coachhook.tables`. The figure `contradictions` needs no stream: its
    `draws` are empty where the study does not show it.
    """

    name: str
    description: str
    streams: dict[str, Stream]
    figures: dict[str, tuple[str, ...]]
    tables: dict[str, tuple[str, ...]]
    models: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    trials: tuple[Trial, ...] = ()
    draws: tuple[Draw, ...] = ()

    @property
    def figure_names(self) -> tuple[str, ...]:
        return (*self.figures, *(("contradictions",) if self.draws else ()))


def load_study(name: str, config_dir: Path, schema_dir: Path, tiny: bool = False) -> Study:
    """Read study `name` with the models, data sets and methods it uses, and hold them to each other.

    tiny: the same study on small stand-ins for its models and data sets (`tiny_study`); its name is then tiny-`name`.
    Raises StudyError, one line that names file, key and what is allowed.
    """
    config_dir, schema_dir = Path(config_dir), Path(schema_dir)
    path, content = read_study(name, config_dir, schema_dir)
    files = read_files(config_dir, schema_dir)
    check_names(content["models"], files.models, f"{path}: models", "model")
    if tiny:
        name = f"tiny-{name}"
        content, files = tiny_study(content, files, read_tiny(config_dir, schema_dir), str(path))
    plan = _Plan(content, files, path)
    wanted_figures = dict(content.get("figures", {}))
    draws = plan.add_draws(wanted_figures.pop("contradictions", None))
    figures = {figure: plan.add(wanted, f"figures.{figure}") for figure, wanted in wanted_figures.items()}
    tables = {}
    for table, wanted in content.get("tables", {}).items():
        kind = table.removeprefix("table_")
        tables[kind] = plan.add(wanted | {"round": _ROUNDS[kind]}, f"tables.{table}")
    if figures and not tables:
        tables["consecutive"] = tuple(plan.streams)
    trials = plan.add_trials(content["tuning"]) if "tuning" in content else ()
    about = (content["description"], plan.streams, figures, tables, files.models, files.datasets)
    return Study(name, *about, trials, draws)


@dataclass
class _Plan:
    """The streams gathered so far from a study's file."""

    content: Mapping[str, Any]
    files: Files
    path: Path
    streams: dict[str, Stream] = field(default_factory=dict)

    def add(self, wanted: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """Note every combination of what a figure or table lists, and return the paths of its streams."""
        where, paths = f"{self.path}: {key}", []
        for model, method in self._edited(wanted, where):
            vary = varied(wanted, model, where)
            defaults = self._defaults(model, method, self.files.tuned)
            check_names(vary, [n for n in defaults if n != "round"], f"{where}.vary", f"hyper-parameter of {method}")
            for values in itertools.product(*vary.values()):
                changed = {"round": wanted.get("round", "consecutive")} | dict(zip(vary, values, strict=True))
                setting = setting_name(changed, defaults)
                paths += self._note(wanted, model, method, setting, defaults, changed, where)
        return tuple(paths)

    def add_draws(self, wanted: Mapping[str, Any] | None) -> tuple[Draw, ...]:
        """The streams that the figure `contradictions` looks at, before anything is edited."""
        if wanted is None:
            return ()
        where, edits = f"{self.path}: figures.contradictions", wanted.get("edits", self.content["edits"])
        check_names(wanted["datasets"], self.files.datasets, f"{where}.datasets", "data set")
        return tuple(
            Draw(dataset, seed, edits) for dataset, seed in itertools.product(wanted["datasets"], wanted["seeds"])
        )

    def add_trials(self, wanted: Mapping[str, Any]) -> tuple[Trial, ...]:
        """Note the streams of every candidate of every method: as many of each as the budget says.

        What an earlier search chose counts for nothing here.
        """
        where = f"{self.path}: tuning"
        trials = []
        for model, method in self._edited(wanted, where):
            defaults = self._defaults(model, method, {})
            for values in candidates(self.files.methods[method].get("search", {}), method, wanted["trials"]):
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
        for model in models:
            for name, values in varied(wanted, model, where).items():
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
                training=editor_training(method, self.files.methods[method], self.files.models[model]),
                trained_on=None if "dataset" in self.files.models[model] else dataset,
                **self._side_effects(setting),
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

    def _side_effects(self, setting: str) -> dict[str, Any]:
        """What is measured besides in streams that tables show; in the many that vary a value it costs too much."""
        names = ("fluency", "ability") if setting in _OF_TABLES else ()
        return {name: self.content[name] for name in names if name in self.content}

    def _check_dataset(self, stream: Stream) -> None:
        """A model knows nothing of requests about facts that it was not trained on."""
        asked, learnt = stream.dataset, self.files.models[stream.model].get("dataset")
        if learnt is None:
            self._check_real(stream)
        elif learnt != asked:
            worlds = [self.files.datasets[name].get("world") for name in (learnt, asked)]
            if worlds[0] is None or worlds[0] != worlds[1]:
                raise StudyError(
                    f"{self.path}: model '{stream.model}' was trained on the facts of '{learnt}' and knows none of "
                    f"'{asked}'; choose a data set of the same world"
                )
        count = self.files.datasets[asked].get("count", stream.edits)
        if stream.edits > count:
            raise StudyError(
                f"{self.path}: edits: {stream.edits} are more than the {count} requests of data set '{asked}'"
            )

    def _check_real(self, stream: Stream) -> None:
        """A model from the hub may know anything real; what editors are trained on for it stands with the requests."""
        entry = self.files.datasets[stream.dataset]
        if "world" in entry:
            raise StudyError(
                f"{self.path}: model '{stream.model}' comes from the hub and knows nothing of the made-up world of "
                f"'{stream.dataset}'; choose a data set of real records"
            )
        if stream.training is not None and "training" not in entry:
            raise StudyError(
                f"config/datasets.yaml: datasets.{stream.dataset}: 'training' is missing; method '{stream.method}' "
                "learns from it"
            )
