import dataclasses
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from coachhook.study import (
    StudyError,
    check_config,
    covariance_command,
    default_hyperparameters,
    load_study,
    setting_name,
    settings_key,
)

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "workflow" / "schemas"
METHOD_FILES = {path.stem for path in (ROOT / "config" / "methods").glob("*.yaml")}
STUDIES = sorted(path.stem for path in (ROOT / "config" / "studies").glob("*.yaml"))


@pytest.fixture
def config(tmp_path):
    return Path(shutil.copytree(ROOT / "config", tmp_path / "config"))


def _edit(path: Path, *keys, value) -> None:
    content = node = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_that_come_along_are_valid(name):
    study = load_study(name, ROOT / "config", SCHEMAS)
    assert study.streams
    made_of_them = [*study.figures.values(), *study.tables.values(), *(trial.paths for trial in study.trials)]
    assert {path for paths in made_of_them for path in paths} == set(study.streams)
    for path, stream in study.streams.items():
        assert path == stream.path
        assert None not in stream.hyperparameters.values()


def test_a_path_means_the_same_stream_in_every_study():
    streams: dict = {}
    for name in STUDIES:
        for path, stream in load_study(name, ROOT / "config", SCHEMAS).streams.items():
            assert streams.setdefault(path, stream) == stream, f"{path} is another stream in study {name}"


def test_the_mini_study_draws_its_figures_and_compares_all_methods_in_both_rounds():
    study = load_study("mini", ROOT / "config", SCHEMAS)
    swept = {"hook", "lambda", "layers", "alpha", "batch_size", "zscore", "retention"}
    assert set(study.figures) == {*swept, "cost", "frontier"}
    hook = [study.streams[path] for path in study.figures["hook"]]
    assert {stream.seed for stream in hook} == {0, 1, 2}
    assert {stream.method for stream in hook} >= {"memit", "coachhook-nohook", "coachhook"}
    assert {stream.dataset for stream in hook} == {"completions", "questions"}
    for table, setting in (("consecutive", "default"), ("single_round", "round=single")):
        streams = [study.streams[path] for path in study.tables[table]]
        assert {stream.setting for stream in streams} == {setting}
        assert {stream.method for stream in streams} == METHOD_FILES
        assert {stream.dataset for stream in streams} == {"completions", "questions"}


def test_the_full_study_is_the_mini_study_with_three_seeds_and_the_sensitivity_to_the_size():
    mini, full = (load_study(name, ROOT / "config", SCHEMAS) for name in ("mini", "full"))
    assert set(full.figures) == {*mini.figures, "sensitivity", "gate"}
    for of_mini, of_full in ((mini.figures, full.figures), (mini.tables, full.tables)):
        for name in of_mini:
            three = {path.rpartition("~")[0] + f"~{seed}" for path in of_mini[name] for seed in (0, 1, 2)}
            assert set(of_full[name]) == three
    sensitivity = [full.streams[path] for path in full.figures["sensitivity"]]
    assert {stream.model for stream in sensitivity} == {"mini", "mini-small"}


def test_tuning_edits_only_what_no_figure_or_table_shows_and_gives_every_method_as_many_trials():
    tuning = load_study("tuning", ROOT / "config", SCHEMAS)
    assert {trial.method for trial in tuning.trials} == METHOD_FILES
    assert {method: sum(trial.method == method for trial in tuning.trials) for method in METHOD_FILES} == dict.fromkeys(
        METHOD_FILES, 6
    )
    tuned_on = {stream.dataset for stream in tuning.streams.values()}
    shown_on = {
        stream.dataset
        for name in STUDIES
        if name != "tuning"
        for stream in load_study(name, ROOT / "config", SCHEMAS).streams.values()
    }
    assert not tuned_on & shown_on


def test_candidates_have_names_of_their_own_whatever_an_earlier_search_chose(config):
    path = config / "studies" / "tuning.yaml"
    _edit(path, "tuning", "methods", value=["memit"])
    _edit(path, "tuning", "trials", value=2)
    _edit(config / "methods" / "memit.yaml", "search", value={"clamp": [0.5, 0.75]})
    before = load_study("tuning", config, SCHEMAS)
    assert [trial.values for trial in before.trials] == [{"clamp": 0.5}, {"clamp": 0.75}]
    names = [{before.streams[path].setting for path in trial.paths} for trial in before.trials]
    assert names == [{"clamp=0.5"}, {"clamp=0.75"}]
    (config / "tuned").mkdir(exist_ok=True)
    (config / "tuned" / "mini.yaml").write_text("memit: {clamp: 0.5, target_lr: 0.1}\n", encoding="utf-8")
    assert load_study("tuning", config, SCHEMAS) == before
    study = load_study("mini", config, SCHEMAS)
    tuned = next(stream for stream in study.streams.values() if stream.method == "memit")
    assert tuned.setting == "default"
    assert (tuned.hyperparameters["clamp"], tuned.hyperparameters["target_lr"]) == (0.5, 0.1)


def test_a_single_round_is_a_setting_with_edits_of_its_own(config):
    _edit(config / "studies" / "smoke.yaml", "tables", "table_single_round", "edits", value=4)
    study = load_study("smoke", config, SCHEMAS)
    single = [study.streams[path] for path in study.tables["single_round"]]
    assert {(stream.setting, stream.round, stream.edits) for stream in single} == {("round=single", "single", 4)}
    assert {study.streams[path].round for path in study.tables["consecutive"]} == {"consecutive"}


def test_one_stream_cannot_be_wanted_with_different_edits(config):
    _edit(config / "studies" / "smoke.yaml", "tables", "table_consecutive", "edits", value=4)
    with pytest.raises(StudyError, match=r"tables\.table_consecutive\.edits: 4, but elsewhere in this study 8 .*equal"):
        load_study("smoke", config, SCHEMAS)


def test_a_study_without_tables_has_one_of_all_its_streams(config):
    path = config / "studies" / "smoke.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["tables"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    study = load_study("smoke", config, SCHEMAS)
    assert study.tables == {"consecutive": tuple(study.streams)}


def test_a_further_method_needs_its_own_file_and_no_other(config):
    """Its hyper-parameters are known from its file alone, and it takes part wherever `all` methods do."""
    entry = {"editor": "memit", "hyperparameters": {"layers": None, "radius": 1.5}, "search": {"radius": [1, 2]}}
    (config / "methods" / "newest.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
    study = load_study("smoke", config, SCHEMAS)
    (stream,) = (study.streams[path] for path in study.tables["consecutive"] if "method~newest/" in path)
    assert stream.hyperparameters == {"layers": [0, 1], "radius": 1.5}
    _edit(config / "studies" / "smoke.yaml", "figures", "lambda", value=_vary("newest", {"radius": [1.5, 3]}))
    study = load_study("smoke", config, SCHEMAS)
    assert [study.streams[path].setting for path in study.figures["lambda"]] == ["default", "radius=3"]


def _vary(method: str, values: dict) -> dict:
    return {"datasets": ["smoke-completions"], "methods": [method], "seeds": [0], "vary": values}


def test_streams_of_the_same_layers_share_a_trained_editor_and_the_model_says_how_it_is_trained(config):
    hyperparameters = {"layers": None, "scale": 1.0, "covariance_weight": None}
    entry = {"editor": "memit", "hyperparameters": hyperparameters, "training": {"steps": 500, "rank": 8}}
    (config / "methods" / "learner.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
    studies = config / "studies" / "smoke.yaml"
    _edit(config / "models.yaml", "models", "smoke", "editor_training", value={"steps": 5})
    _edit(studies, "figures", "lambda", value=_vary("learner", {"scale": [1.0, 2.0]}))
    _edit(studies, "figures", "zscore", value=_vary("learner", {"layers": [[0], [0, 1]]}))
    study = load_study("smoke", config, SCHEMAS)
    scaled = {study.streams[path].trained_editor for path in study.figures["lambda"]}
    layered = {study.streams[path].trained_editor for path in study.figures["zscore"]}
    assert len(scaled) == 1
    assert len(layered) == 2
    assert scaled < layered
    stream = study.streams[study.figures["lambda"][0]]
    assert stream.training == {"steps": 5, "rank": 8}
    assert stream.trained_editor.startswith("smoke/learner.")
    _edit(config / "models.yaml", "models", "smoke", "editor_training", value={"steps": 6})
    assert load_study("smoke", config, SCHEMAS).streams[stream.path].trained_editor != stream.trained_editor
    assert all(s.trained_editor is None for s in study.streams.values() if s.method == "memit")


def test_the_paper_s_study_runs_every_method_on_both_models_and_data_sets_in_both_rounds():
    study = load_study("paper", ROOT / "config", SCHEMAS)
    everything = {
        (model, dataset, method)
        for model in ("gpt2-xl", "gpt-j")
        for dataset in ("zsre", "counterfact-edit")
        for method in METHOD_FILES
    }
    for table in ("consecutive", "single_round"):
        streams = [study.streams[path] for path in study.tables[table]]
        assert {(stream.model, stream.dataset, stream.method) for stream in streams} == everything
        assert {(stream.edits, stream.batch_size) for stream in streams} == {(1000, 30)}
    ablations = {"hook", "lambda", "layers", "alpha", "batch_size", "zscore", "retention", "sensitivity"}
    assert ablations <= set(study.figures)
    assert study.figure_names[-1] == "contradictions"


@pytest.mark.parametrize(
    ("model", "method", "values"),
    [
        ("gpt2-xl", "coachhook", {"layers": [13, 14, 15, 16, 17], "covariance_weight": 15000, "alpha": 2.2}),
        ("gpt-j", "coachhook", {"layers": [3, 4, 5, 6, 7, 8], "covariance_weight": 15000, "target_steps": 25}),
        ("gpt2-xl", "memit", {"covariance_weight": 20000, "target_steps": 20, "clamp": 0.75, "kl_factor": 0.0625}),
        ("gpt-j", "rome", {"layers": [5], "target_steps": 20, "clamp": 4, "target_lr": 0.5}),
        ("gpt2-xl", "emmet", {"layers": [17], "covariance_weight": 1000, "equality_slack": 0.1}),
        ("gpt-j", "alphaedit", {"nullspace_threshold": 0.02, "ridge": 10}),
        ("gpt-j", "wise", {"layers": [21], "steps": 70, "margins": [15, 40, 20], "routing_ratio": 0.88}),
        ("gpt2-xl", "grace", {"layers": [35], "radius": 1.0, "steps": 100, "learning_rate": 1.0}),
        ("gpt-j", "ultraedit", {"layers": [18, 19, 20, 21, 22, 23, 24, 25, 26], "learning_rate": 1e-6}),
    ],
)
def test_the_paper_s_study_uses_published_values(model, method, values):
    streams = load_study("paper", ROOT / "config", SCHEMAS).streams.values()
    stream = next(s for s in streams if (s.model, s.method, s.setting) == (model, method, "default"))
    assert {name: stream.hyperparameters[name] for name in values} == values
    assert (stream.training is not None) == (method in ("mend", "serac"))


def test_models_have_layers_of_their_own_to_vary():
    study = load_study("paper", ROOT / "config", SCHEMAS)
    streams = [study.streams[path] for path in study.figures["layers"]]
    varied = {(stream.model, tuple(stream.hyperparameters["layers"])) for stream in streams}
    assert {model for model, _ in varied} == {"gpt2-xl", "gpt-j"}
    assert ("gpt2-xl", (17,)) in varied
    assert ("gpt-j", (8,)) in varied
    assert ("gpt2-xl", (8,)) not in varied


def test_long_streams_have_ten_thousand_requests_and_modern_models_their_own():
    long, modern = (load_study(name, ROOT / "config", SCHEMAS) for name in ("long", "modern"))
    assert {stream.edits for stream in long.streams.values()} == {10_000}
    assert {stream.model for stream in modern.streams.values()} == {"llama-3-8b", "qwen2-5-7b"}


def test_the_thousand_study_looks_at_the_gates_after_more_than_a_thousand_edits():
    study = load_study("thousand", ROOT / "config", SCHEMAS)
    gates = [study.streams[path] for path in study.figures["gate"]]
    assert {(stream.method, stream.seed) for stream in gates} == {
        (method, seed) for method in ("coachhook-leverage", "coachhook") for seed in (0, 1, 2)
    }
    assert all(stream.edits > 1000 and stream.setting == "default" for stream in study.streams.values())


def test_streams_of_the_zsre_model_fit_into_what_it_can_be_made_to_answer():
    study = load_study("zsre-local", ROOT / "config", SCHEMAS)
    assert {stream.edits for stream in study.streams.values()} == {60}
    assert {draw.dataset for draw in study.draws} == {"zsre", "zsre-local"}


def test_an_editor_for_a_model_from_the_hub_is_trained_for_each_data_set():
    streams = load_study("paper", ROOT / "config", SCHEMAS).streams.values()
    editors = {(s.model, s.dataset): s.trained_editor for s in streams if s.method == "mend"}
    assert len(editors) == len(set(editors.values())) == 4
    (mend,) = {s.training["learning_rate"] for s in streams if s.method == "mend"}
    (serac,) = {s.training["learning_rate"] for s in streams if s.method == "serac"}
    assert (mend, serac) == (1e-6, 1e-5)


@pytest.mark.parametrize("name", ["paper", "long", "modern"])
def test_a_tiny_study_is_the_same_study_on_tiny_models_and_example_records(name):
    study, tiny = (load_study(name, ROOT / "config", SCHEMAS, tiny=flag) for flag in (False, True))
    assert tiny.name == f"tiny-{name}"
    assert tiny.figure_names == study.figure_names
    first = {path.rpartition("~")[0]: stream for path, stream in study.streams.items()}
    for path, stream in tiny.streams.items():
        twin = first[path.rpartition("~")[0].replace("tiny-", "")]
        assert stream.hyperparameters["layers"] == twin.hyperparameters["layers"]
        assert (stream.edits, stream.seed) == (6, 0)
        assert stream.hyperparameters.get("target_steps", 0) <= 2
        config = tiny.models[stream.model]["config"]
        assert max(stream.hyperparameters["layers"]) < config.get("n_layer", config.get("num_hidden_layers"))
        assert (ROOT / "data" / "examples" / tiny.datasets[stream.dataset]["file"]).exists()
    if name == "paper":
        sizes = [tiny.streams[path].batch_size for path in tiny.figures["batch_size"]]
        assert set(sizes) == {10, 3, 100}
        assert {tiny.streams[path].setting for path in tiny.figures["batch_size"]} >= {"default", "batch_size=100"}


def test_fluency_and_ability_are_measured_in_the_streams_that_tables_show(config):
    path = config / "studies" / "smoke.yaml"
    plain = load_study("smoke", config, SCHEMAS).streams
    assert all(stream.fluency is stream.ability is None for stream in plain.values())
    _edit(path, "fluency", value=5)
    _edit(path, "ability", value={"tasks": ["boolq"], "limit": 100})
    streams = load_study("smoke", config, SCHEMAS).streams
    assert {s.setting for s in streams.values() if s.fluency == 5} == {"default", "round=single"}
    for name, stream in streams.items():
        measured = stream.setting in ("default", "round=single")
        assert stream.ability == ({"tasks": ["boolq"], "limit": 100} if measured else None)
        assert dataclasses.replace(stream, fluency=None, ability=None) == plain[name]


def test_a_tiny_study_measures_ability_by_example_tasks(config):
    ability = {"tasks": ["mmlu"], "batch_size": 64}
    _edit(config / "studies" / "modern.yaml", "ability", value=ability)
    _edit(config / "studies" / "modern.yaml", "fluency", value=100)
    tiny = load_study("modern", config, SCHEMAS, tiny=True).streams.values()
    stream = next(stream for stream in tiny if stream.setting == "default")
    assert stream.fluency == 1
    folder = ROOT / stream.ability["include_path"]
    assert {f"task: {name}" for name in stream.ability["tasks"]} <= {
        line for path in folder.glob("*.yaml") for line in path.read_text(encoding="utf-8").splitlines()
    }


def test_models_that_are_trained_here_have_no_tiny_stand_in():
    with pytest.raises(StudyError, match=r"mini\.yaml: models: 'mini' is trained here .* study=smoke is small"):
        load_study("mini", ROOT / "config", SCHEMAS, tiny=True)


def test_a_model_from_the_hub_is_refused_made_up_people_and_a_method_its_missing_training(config):
    path = config / "studies" / "long.yaml"
    _edit(path, "figures", "hook", "datasets", value=["questions"])
    with pytest.raises(StudyError, match=r"'gpt2-xl' comes from the hub and knows nothing .* of 'questions'"):
        load_study("long", config, SCHEMAS)
    _edit(path, "figures", "hook", "datasets", value=["counterfact"])
    _edit(path, "figures", "hook", "methods", value=["mend"])
    with pytest.raises(StudyError, match=r"datasets\.counterfact: 'training' is missing; method 'mend'"):
        load_study("long", config, SCHEMAS)


def test_a_models_architecture_goes_to_its_streams_and_its_covariance(config):
    parts = {"blocks": "model.layers", "rewrite_module": "mlp.c_proj", "final_norm": "model.norm"}
    assert {s.architecture for s in load_study("smoke", config, SCHEMAS).streams.values()} == {None}
    _edit(config / "models.yaml", "models", "smoke", "architecture", value=parts)
    study = load_study("smoke", config, SCHEMAS)
    assert all(stream.architecture == parts for stream in study.streams.values())
    settings = study.models["smoke"]["covariance"]
    declared = "blocks=model.layers,rewrite_module=mlp.c_proj,final_norm=model.norm"
    command = covariance_command("smoke", settings)
    assert covariance_command("smoke", settings, parts) == f"{command} --architecture {declared}"


def test_figures_share_streams_and_the_default_value_is_the_default_setting(config):
    study = load_study("smoke", config, SCHEMAS)
    swept = [study.streams[path] for path in study.figures["lambda"]]
    assert [stream.setting for stream in swept] == ["default", "covariance_weight=100"]
    assert swept[1].hyperparameters["covariance_weight"] == 100
    assert study.figures["zscore"][0] in study.figures["hook"]
    assert set(study.figures["hook"]) & set(study.tables["consecutive"])


def test_a_setting_names_every_value_that_differs():
    defaults = {"layers": [0, 1], "alpha": 2.2, "batch_size": 10}
    assert setting_name({"alpha": 2.2}, defaults) == "default"
    assert setting_name({"layers": [0], "alpha": 1.5, "batch_size": 10}, defaults) == "layers=0,alpha=1.5"
    assert setting_name({"layers": [0, 2]}, defaults) == "layers=0-2"
    assert setting_name({"layers": [0, 1], "alpha": 2.2}) == "layers=0-1,alpha=2.2"


def test_a_value_is_the_tuned_one_or_the_method_s_or_where_that_is_open_the_model_s():
    entry = {"hyperparameters": {"layers": None, "alpha": 2.2, "clamp": 0.75}}
    model = {"editing": {"layers": [1], "alpha": 1.9, "covariance_weight": 5}}
    values = {"layers": [1], "alpha": 2.2, "clamp": 0.75}
    assert default_hyperparameters("x", entry, "m", model, {}) == values
    assert default_hyperparameters("x", entry, "m", model, {"layers": [0], "clamp": 1}) == {
        "layers": [0],
        "alpha": 2.2,
        "clamp": 1,
    }
    with pytest.raises(StudyError, match=r"models\.m\.editing: 'layers' is missing; method 'x' needs it"):
        default_hyperparameters("x", entry, "m", {"editing": {}}, {})


def test_a_batch_size_can_be_varied(config):
    path = config / "studies" / "smoke.yaml"
    _edit(path, "figures", "lambda", "vary", value={"batch_size": [2, 4]})
    study = load_study("smoke", config, SCHEMAS)
    sizes = {study.streams[p].setting: study.streams[p].batch_size for p in study.figures["lambda"]}
    assert sizes == {"batch_size=2": 2, "default": 4}


@pytest.mark.parametrize(
    ("file", "keys", "value", "words"),
    [
        ("studies/smoke.yaml", ["edist"], 3, ["unknown key 'edist'", "allowed:", "edits"]),
        ("studies/smoke.yaml", ["edits"], "ten", ["edits: 'ten'", "integer", "requests per stream"]),
        ("studies/smoke.yaml", ["edits"], 0, ["edits: 0", "requests per stream"]),
        ("studies/smoke.yaml", ["edits"], 10_000, ["edits: 10000", "40 requests", "smoke-"]),
        ("studies/smoke.yaml", ["protocols"], ["roma"], ["unknown value 'roma'", "easyedit, rome, generate"]),
        ("studies/smoke.yaml", ["fluency"], 0, ["fluency: 0", "edit prompts"]),
        ("studies/smoke.yaml", ["ability"], {"limit": 3}, ["ability: 'tasks' is a required property"]),
        ("studies/smoke.yaml", ["ability"], {"tasks": ["a"], "seed": 1}, ["unknown key 'seed'", "tasks, include_path"]),
        ("studies/smoke.yaml", ["models"], ["gpt5"], ["unknown model 'gpt5'", "mini"]),
        ("studies/smoke.yaml", ["models"], ["mini"], ["model 'mini'", "knows none of 'smoke-completions'"]),
        ("studies/smoke.yaml", ["figures", "hok"], {}, ["unknown key 'hok'", "hook", "retention"]),
        ("studies/smoke.yaml", ["figures", "hook", "seedz"], [0], ["figures.hook", "unknown key 'seedz'", "seeds"]),
        ("studies/smoke.yaml", ["figures", "hook", "methods"], ["mimit"], ["unknown method 'mimit'", "memit"]),
        ("studies/smoke.yaml", ["figures", "hook", "datasets"], ["zrse"], ["unknown data set 'zrse'", "questions"]),
        ("studies/smoke.yaml", ["figures", "hook", "seeds"], [], ["figures.hook.seeds"]),
        ("studies/smoke.yaml", ["figures", "lambda", "vary"], {"lamda": [1]}, ["'lamda'", "covariance_weight"]),
        ("studies/smoke.yaml", ["figures", "lambda", "vary"], {"alpha": [-1]}, ["vary.alpha", "-1"]),
        ("studies/smoke.yaml", ["figures", "hook", "vary"], {"alpha": [1]}, ["hyper-parameter of memit 'alpha'"]),
        ("models.yaml", ["models", "smoke", "sead"], 0, ["models.smoke", "unknown key 'sead'", "seed"]),
        ("models.yaml", ["models", "smoke", "dataset"], "x", ["models.smoke.dataset", "'x'", "completions"]),
        ("models.yaml", ["models", "smoke", "training", "width"], "w", ["models.smoke.training.width: 'w'"]),
        (
            "models.yaml",
            ["models", "smoke", "editing", "lambda"],
            1,
            ["unknown hyper-parameter 'lambda'", "covariance_weight"],
        ),
        ("models.yaml", ["models", "smoke", "editing"], {}, ["models.smoke.editing", "is missing", "needs it"]),
        ("datasets.yaml", ["worlds", "smoke", "size"], 1, ["worlds.smoke", "unknown key 'size'", "subjects"]),
        ("datasets.yaml", ["datasets", "questions", "world"], "x", ["datasets.questions.world", "'x'", "mini"]),
        ("datasets.yaml", ["datasets", "questions", "form"], "x", ["datasets.questions.form", "completions"]),
        (
            "datasets.yaml",
            ["datasets", "questions", "file"],
            "x",
            ["datasets.questions", "exactly one of: world, file, hub"],
        ),
        (
            "datasets.yaml",
            ["datasets", "counterfact"],
            {"hub": "zjunlp/KnowEdit", "files": ["a.json", "b.json"], "revision": "0" * 40, "sha256": ["0" * 64]},
            ["datasets.counterfact.sha256", "1 checksums for 2 files"],
        ),
        (
            "datasets.yaml",
            ["datasets", "counterfact-full", "training", "sha256"],
            ["0" * 64, "1" * 64],
            ["datasets.counterfact-full.training.sha256", "2 checksums for 1 files"],
        ),
        (
            "datasets.yaml",
            ["datasets", "counterfact"],
            {"hub": "zjunlp/KnowEdit", "files": ["a.json"], "revision": "main", "sha256": ["0" * 64]},
            ["datasets.counterfact.revision", "'main'", "the commit of the data set"],
        ),
        ("models.yaml", ["models", "smoke", "editor_training"], {"stepz": 1}, ["editor_training", "'stepz'"]),
        ("models.yaml", ["models", "smoke", "architecture"], {"blocks": "h"}, ["architecture", "'rewrite_module'"]),
        (
            "studies/smoke.yaml",
            ["figures", "hook", "models"],
            ["mini"],
            ["model of this study 'mini'", "smoke"],
        ),
        ("studies/smoke.yaml", ["figures", "hook", "round"], "both", ["'both'", "consecutive, single"]),
        ("studies/smoke.yaml", ["figures", "hook", "methods"], "every", ["figures.hook.methods", "'every'", "`all`"]),
        ("studies/smoke.yaml", ["tables", "table_1"], {}, ["unknown key 'table_1'", "table_single_round"]),
        ("studies/smoke.yaml", ["tables", "table_consecutive", "vary"], {}, ["unknown key 'vary'", "edits"]),
        ("studies/smoke.yaml", ["tuning"], {}, ["exactly one of: figures, tuning"]),
        ("studies/smoke.yaml", ["figures", "lambda", "vary"], {"round": ["single"]}, ["hyper-parameter of coachhook"]),
        (
            "studies/smoke.yaml",
            ["figures", "lambda", "vary"],
            {"covariance_weight": {"mini": [10]}},
            ["figures.lambda.vary.covariance_weight", "model with values of its own 'smoke'", "mini"],
        ),
        ("models.yaml", ["hub_models", "gpt-j", "revison"], "main", ["hub_models.gpt-j", "unknown key 'revison'"]),
        ("models.yaml", ["hub_models", "gpt-j", "dtype"], "int4", ["unknown value 'int4'", "float16, bfloat16"]),
        ("models.yaml", ["hub_models", "smoke"], None, ["hub_models.smoke"]),
        ("models.yaml", ["hub_models", "gpt-j", "covariance", "texts"], 1, ["gpt-j.covariance.texts: 1", "data set"]),
        ("models.yaml", ["hub_models", "gpt-j", "editing", "lambda"], 1, ["hub_models.gpt-j.editing", "'lambda'"]),
        (
            "models.yaml",
            ["hub_models", "gpt-j", "editor_training", "mend", "embedding_width"],
            8,
            ["editor_training.mend", "hyper-parameter of mend 'embedding_width'"],
        ),
        ("models.yaml", ["models", "smoke", "dataset"], "zsre", ["models.smoke.dataset", "no facts are derived"]),
        ("datasets.yaml", ["datasets", "zsre", "contradictions"], "both", ["'both'", "keep, first, last, error"]),
        ("datasets.yaml", ["datasets", "questions", "more_facts"], ["x"], ["'file' is a dependency of 'more_facts'"]),
        (
            "studies/smoke.yaml",
            ["figures", "contradictions"],
            {"datasets": ["zsre"], "seeds": [0], "methods": ["memit"]},
            ["figures.contradictions", "unknown key 'methods'", "datasets, seeds"],
        ),
        (
            "studies/smoke.yaml",
            ["figures", "contradictions"],
            {"datasets": ["zrse"], "seeds": [0]},
            ["figures.contradictions.datasets: unknown data set 'zrse'"],
        ),
        (
            "datasets.yaml",
            ["datasets", "validation", "apart_from"],
            ["smoke-completions"],
            ["validation.apart_from", "data set of the same world 'smoke-completions'", "validation-questions"],
        ),
        ("methods/memit.yaml", ["search"], {"clmp": [1]}, ["search", "unknown hyper-parameter 'clmp'", "clamp"]),
        ("methods/memit.yaml", ["hyperparams"], {}, ["unknown key 'hyperparams'", "hyperparameters"]),
        ("methods/memit.yaml", ["hyperparameters", "clamp"], 0, ["clamp: 0"]),
        ("methods/memit.yaml", ["editor"], "mimit", ["unknown editor 'mimit'", "memit"]),
    ],
)
def test_a_mistake_is_one_line_that_names_file_key_and_what_is_allowed(config, file, keys, value, words):
    _edit(config / file, *keys, value=value)
    with pytest.raises(StudyError) as error:
        load_study("smoke", config, SCHEMAS)
    message = str(error.value)
    assert "\n" not in message
    for word in [Path(file).name, *words]:
        assert word in message, message


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tuned/smoke.yaml", "mimit: {clamp: 1}", ["smoke.yaml: unknown method 'mimit'", "memit"]),
        ("tuned/smoke.yaml", "memit: {clmp: 1}", ["unknown hyper-parameter of memit 'clmp'", "clamp"]),
        ("tuned/smoke.yaml", "memit: {clamp: 0}", ["smoke.yaml: memit: clamp: 0"]),
        ("tuned/gpt5.yaml", "memit: {clamp: 1}", ["gpt5.yaml: unknown model 'gpt5'", "smoke"]),
    ],
)
def test_a_mistake_in_tuned_values_is_one_line(config, file, text, words):
    (config / "tuned").mkdir(exist_ok=True)
    (config / file).write_text(text, encoding="utf-8")
    with pytest.raises(StudyError) as error:
        load_study("smoke", config, SCHEMAS)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_search_of_another_size_than_the_budget_is_refused(config):
    _edit(config / "methods" / "memit.yaml", "search", value={"clamp": [0.5, 1.0], "target_lr": [0.1, 0.5]})
    with pytest.raises(StudyError, match=r"memit\.yaml: search: .* 4 combinations, but every method gets 6 trials"):
        load_study("tuning", config, SCHEMAS)
    _edit(config / "methods" / "memit.yaml", "search", value={"clamp": [0.5, 0], "target_steps": [1, 2, 3]})
    with pytest.raises(StudyError, match=r"memit\.yaml: search\.clamp: 0 "):
        load_study("tuning", config, SCHEMAS)


def test_broken_yaml_and_missing_files_are_one_line(config):
    (config / "models.yaml").write_text("models: [\n  a: {", encoding="utf-8")
    with pytest.raises(StudyError, match=r"models\.yaml: not YAML: [^\n]*$"):
        load_study("smoke", config, SCHEMAS)
    (config / "models.yaml").unlink()
    with pytest.raises(StudyError, match=r"models\.yaml: no such file$"):
        load_study("smoke", config, SCHEMAS)


def test_an_unknown_study_or_config_key_is_refused(config):
    with pytest.raises(StudyError, match=r"unknown study 'maxi'.*mini.*smoke"):
        load_study("maxi", config, SCHEMAS)
    with pytest.raises(StudyError, match=r"config/config\.yaml: unknown key 'stduy'; allowed: study, records"):
        check_config({"study": "mini", "stduy": "smoke"}, SCHEMAS)
    with pytest.raises(StudyError, match="records"):
        check_config({"study": "mini"}, SCHEMAS)
    check_config({"study": "mini", "records": "data", "tiny": False}, SCHEMAS)
    with pytest.raises(StudyError, match=r"tiny: 'perhaps' is not of type 'boolean'"):
        check_config({"study": "mini", "records": "data", "tiny": "perhaps"}, SCHEMAS)


def test_the_key_of_settings_depends_on_all_of_them_and_on_no_order():
    key = settings_key({"layers": "0,1", "max_tokens": 5})
    assert key == settings_key({"max_tokens": 5, "layers": "0,1"})
    assert key != settings_key({"layers": "0,1", "max_tokens": 6})


def _properties(schema: dict, *keys) -> set[str]:
    for key in keys:
        schema = schema[key]
    return set(schema["properties"])


def test_schemas_know_what_the_library_knows():
    from coachhook.base_model import TrainingConfig
    from coachhook.editors import METHODS
    from coachhook.metrics.ability import AbilityConfig
    from coachhook.world import WorldConfig

    schemas = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in SCHEMAS.glob("*.yaml")}
    worlds = _properties(schemas["datasets.schema"], "properties", "worlds", "additionalProperties")
    assert worlds - {"seed"} == {field.name for field in dataclasses.fields(WorldConfig)}
    model = schemas["models.schema"]["properties"]["models"]["additionalProperties"]
    assert _properties(model, "properties", "training") == {f.name for f in dataclasses.fields(TrainingConfig)}
    assert _properties(schemas["study.schema"], "properties", "ability") == set(AbilityConfig.model_fields)
    known = {name for entry in METHODS.values() for name in entry.load().config_class.model_fields}
    assert _properties(schemas["hyperparameters.schema"]) <= known


def test_every_method_has_a_file_that_lists_all_its_hyperparameters():
    """Without those that the registry or the stream decides, that are off by default, and α where the gate has none."""
    from coachhook.editors import METHODS

    assert set(METHODS) == METHOD_FILES
    for path in (ROOT / "config" / "methods").glob("*.yaml"):
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        registered = METHODS[entry["editor"]]
        fields, listed = registered.load().config_class.model_fields, set(entry["hyperparameters"])
        decided = {"seed", *registered.preset} | (
            {"alpha"} if registered.preset.get("gate") in ("off", "leverage") else set()
        )
        assert listed <= set(fields), path.name
        assert entry.get("needs_covariance", False) == registered.load().needs_covariance, path.name
        assert ("training" in entry) == hasattr(registered.load(), "training_class"), path.name
        assert {name for name, field in fields.items() if field.default is not None} - decided <= listed, path.name


@pytest.mark.parametrize("name", STUDIES)
def test_every_value_of_the_studies_that_come_along_is_accepted_by_its_method(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["check_values.py", name])
    runpy.run_path("scripts/check_values.py")  # it exits with the mistake, where there is one


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("hyperparameters", "edit_scale"), "mend.yaml, for model smoke: edit_scale: input should be greater than 0"),
        (("training", "rank"), "mend.yaml, for model smoke: rank: input should be greater than or equal to 1"),
        (("training", "stepz"), "mend.yaml, for model smoke: stepz: extra inputs are not permitted"),
    ],
)
def test_a_value_that_only_its_method_can_refuse_is_one_line(config, monkeypatch, keys, words):
    _edit(config / "methods" / "mend.yaml", *keys, value=-1)
    monkeypatch.chdir(config.parent)
    shutil.copytree(SCHEMAS, "workflow/schemas")
    monkeypatch.setattr(sys, "argv", ["check_values.py", "smoke"])
    with pytest.raises(SystemExit, match=words) as error:
        runpy.run_path(str(ROOT / "scripts" / "check_values.py"))
    assert "\n" not in str(error.value)


def test_an_unknown_task_is_one_line_before_any_job(config, monkeypatch):
    _edit(config / "studies" / "smoke.yaml", "ability", value={"tasks": ["towns"], "include_path": "config"})
    monkeypatch.chdir(config.parent)
    shutil.copytree(SCHEMAS, "workflow/schemas")
    monkeypatch.setattr(sys, "argv", ["check_values.py", "smoke"])
    with pytest.raises(SystemExit, match=r"^config/studies/smoke\.yaml: tasks: 'towns' is unknown") as error:
        runpy.run_path(str(ROOT / "scripts" / "check_values.py"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_key_of_a_schema_is_described(path):
    def undescribed(node, where=""):
        for name, entry in node.get("properties", {}).items():
            if "description" not in entry:
                yield f"{where}.{name}"
            yield from undescribed(entry, f"{where}.{name}")
        for key in ("additionalProperties", "items"):
            if isinstance(node.get(key), dict):
                yield from undescribed(node[key], f"{where}.{key}")

    assert not list(undescribed(yaml.safe_load(path.read_text(encoding="utf-8"))))
