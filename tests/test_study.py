import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml

from coachhook.study import StudyError, check_config, default_hyperparameters, load_study, setting_name, settings_key

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "workflow" / "schemas"
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
    assert {path for paths in study.figures.values() for path in paths} == set(study.streams)
    for path, stream in study.streams.items():
        assert path == stream.path
        assert None not in stream.hyperparameters.values()


def test_a_path_means_the_same_stream_in_every_study():
    streams: dict = {}
    for name in STUDIES:
        for path, stream in load_study(name, ROOT / "config", SCHEMAS).streams.items():
            assert streams.setdefault(path, stream) == stream, f"{path} is another stream in study {name}"


def test_the_mini_study_draws_every_figure_and_compares_methods_over_three_seeds():
    study = load_study("mini", ROOT / "config", SCHEMAS)
    assert set(study.figures) == {"hook", "lambda", "layers", "alpha", "batch_size", "zscore", "retention"}
    hook = [study.streams[path] for path in study.figures["hook"]]
    assert {stream.seed for stream in hook} == {0, 1, 2}
    assert {stream.method for stream in hook} >= {"memit", "coachhook-nohook", "coachhook"}
    assert {stream.dataset for stream in hook} == {"completions", "questions"}


def test_figures_share_streams_and_the_default_value_is_the_default_setting(config):
    study = load_study("smoke", config, SCHEMAS)
    swept = [study.streams[path] for path in study.figures["lambda"]]
    assert [stream.setting for stream in swept] == ["default", "covariance_weight=100"]
    assert swept[1].hyperparameters["covariance_weight"] == 100
    assert study.figures["zscore"][0] in study.figures["hook"]
    assert len(study.streams) == 5


def test_a_setting_names_every_value_that_differs():
    defaults = {"layers": [0, 1], "alpha": 2.2, "batch_size": 10}
    assert setting_name({"alpha": 2.2}, defaults) == "default"
    assert setting_name({"layers": [0], "alpha": 1.5, "batch_size": 10}, defaults) == "layers=0,alpha=1.5"
    assert setting_name({"layers": [0, 2]}, defaults) == "layers=0-2"


def test_values_come_from_the_method_then_the_model_for_what_the_method_has():
    entry = {"hyperparameters": {"layers": None, "alpha": 2.2}}
    model = {"editing": {"layers": [1], "alpha": 1.9, "covariance_weight": 5}}
    assert default_hyperparameters("x", entry, "m", model) == {"layers": [1], "alpha": 1.9}
    with pytest.raises(StudyError, match=r"models\.m\.editing: 'layers' is missing; method 'x' needs it"):
        default_hyperparameters("x", entry, "m", {"editing": {}})


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
        ("studies/smoke.yaml", ["protocols"], ["rome"], ["unknown value 'rome'", "easyedit, generate"]),
        ("studies/smoke.yaml", ["models"], ["gpt5"], ["unknown model 'gpt5'", "mini"]),
        ("studies/smoke.yaml", ["models"], ["mini"], ["model 'mini'", "knows none of 'smoke-completions'"]),
        ("studies/smoke.yaml", ["figures", "hok"], {}, ["unknown key 'hok'", "hook", "retention"]),
        ("studies/smoke.yaml", ["figures", "hook", "seedz"], [0], ["figures.hook", "unknown key 'seedz'", "seeds"]),
        ("studies/smoke.yaml", ["figures", "hook", "methods"], ["mimit"], ["unknown method 'mimit'", "memit"]),
        ("studies/smoke.yaml", ["figures", "hook", "datasets"], ["zsre"], ["unknown data set 'zsre'", "questions"]),
        ("studies/smoke.yaml", ["figures", "hook", "seeds"], [], ["figures.hook.seeds"]),
        ("studies/smoke.yaml", ["figures", "lambda", "vary"], {"lamda": [1]}, ["'lamda'", "covariance_weight"]),
        ("studies/smoke.yaml", ["figures", "lambda", "vary"], {"alpha": [-1]}, ["vary.alpha", "-1"]),
        ("studies/smoke.yaml", ["figures", "hook", "vary"], {"alpha": [1]}, ["hyper-parameter of memit 'alpha'"]),
        ("models.yaml", ["models", "smoke", "sead"], 0, ["models.smoke", "unknown key 'sead'", "seed"]),
        ("models.yaml", ["models", "smoke", "dataset"], "x", ["models.smoke.dataset", "'x'", "completions"]),
        ("models.yaml", ["models", "smoke", "training", "width"], "w", ["models.smoke.training.width: 'w'"]),
        ("models.yaml", ["models", "smoke", "editing", "lambda"], 1, ["unknown key 'lambda'", "covariance_weight"]),
        ("models.yaml", ["models", "smoke", "editing"], {}, ["models.smoke.editing", "is missing", "needs it"]),
        ("datasets.yaml", ["worlds", "smoke", "size"], 1, ["worlds.smoke", "unknown key 'size'", "subjects"]),
        ("datasets.yaml", ["datasets", "questions", "world"], "x", ["datasets.questions.world", "'x'", "mini"]),
        ("datasets.yaml", ["datasets", "questions", "form"], "x", ["datasets.questions.form", "completions"]),
        (
            "datasets.yaml",
            ["datasets", "questions", "file"],
            "x",
            ["datasets.questions", "exactly one of: world, file"],
        ),
        ("methods/memit.yaml", ["hyperparameters", "lr"], 1, ["unknown hyper-parameter 'lr'", "target_lr"]),
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
    check_config({"study": "mini", "records": "data"}, SCHEMAS)


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
    from coachhook.world import WorldConfig

    schemas = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in SCHEMAS.glob("*.yaml")}
    worlds = _properties(schemas["datasets.schema"], "properties", "worlds", "additionalProperties")
    assert worlds - {"seed"} == {field.name for field in dataclasses.fields(WorldConfig)}
    model = schemas["models.schema"]["properties"]["models"]["additionalProperties"]
    assert _properties(model, "properties", "training") == {f.name for f in dataclasses.fields(TrainingConfig)}
    known = {name for entry in METHODS.values() for name in entry.load().config_class.model_fields}
    assert _properties(schemas["hyperparameters.schema"]) <= known


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_methods_have_the_hyperparameters_that_their_files_list(path):
    from coachhook.editors import METHODS

    entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    registered = METHODS[entry["editor"]]
    assert set(entry["hyperparameters"]) <= set(registered.load().config_class.model_fields)


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
