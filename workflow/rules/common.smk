import fcntl
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from snakemake.exceptions import WorkflowError

from coachhook.provenance import code_digest, method_digest, training_digest
from coachhook.study import StudyError, check_config, covariance_command, load_study, settings_key

# Rules call snakemake, dvc and coachhook: those of this environment, activated or not.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))

SCHEMAS = Path(workflow.basedir) / "workflow" / "schemas"

try:
    check_config(config, SCHEMAS)
    study = load_study(config["study"], Path("config"), SCHEMAS)
except StudyError as error:
    raise WorkflowError(str(error)) from None

STREAM = "model~{model}/dataset~{dataset}/method~{method}/setting~{setting}/seed~{seed}"
METHOD_CODE = {editor: method_digest(editor) for editor in {stream.editor for stream in study.streams.values()}}
TRAINED_EDITORS = {stream.trained_editor: stream for stream in study.streams.values() if stream.training is not None}
TRAINING_CODE = {stream.editor: training_digest(stream.editor) for stream in TRAINED_EDITORS.values()}
PROTOCOLS = next(iter(study.streams.values())).protocols
# Per file the round, the protocol and the streams of a table; the first protocol's has no suffix.
TABLES = {
    f"{kind}_{protocol}".removesuffix(f"_{PROTOCOLS[0]}"): [kind, protocol, list(paths)]
    for kind, paths in study.tables.items()
    for protocol in PROTOCOLS
}
SWEPT = {
    "lambda": ["covariance_weight"],
    "layers": ["layers"],
    "alpha": ["alpha"],
    "batch_size": ["batch_size"],
    "sensitivity": ["covariance_weight", "alpha"],
}
FURTHER_RESULTS = {"zscore": ["zscores.parquet"], "retention": ["records.parquet"], "cost": ["cost.jsonl"]}
# `full` is `mini` with more seeds, and `tuning` finds the values of both: they share a folder.
FIGURES = "figures" if study.name in ("mini", "full", "tuning") else f"figures/{study.name}"
REPORT = "report.html" if study.name in ("mini", "full") else f"report-{study.name}.html"


wildcard_constraints:
    model="[a-z0-9-]+",
    dataset="[a-z0-9-]+",
    method="[a-z0-9-]+",
    setting="[A-Za-z0-9_=.,-]+",
    seed="[0-9]+",
    figure="|".join(study.figures) or "none",
    key="[0-9a-f]{8}",


def get_model_files(model):
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    return [f"results/models/{model}/{name}" for name in names]


def get_source(wildcards):
    return study.datasets[wildcards.dataset]


def get_request_files(wildcards):
    source = study.datasets[wildcards.dataset]
    names = [source["file"], *source.get("more_facts", ())] if "file" in source else []
    return [str(Path(config["records"]) / name) for name in names]


def get_training_facts(wildcards):
    return f"results/datasets/{study.models[wildcards.model]['dataset']}/facts.json"


def get_training_lines(wildcards):
    return f"results/datasets/{study.models[wildcards.model]['dataset']}/lines.txt"


def get_training(wildcards):
    return study.models[wildcards.model].get("training", {})


def get_model_seed(wildcards):
    return study.models[wildcards.model]["seed"]


def get_covariance_path(model):
    """The name changes with the settings: DVC may restore the file, and then no metadata tells them."""
    return f"results/covariances/{model}.{settings_key(study.models[model]['covariance'])}.safetensors"


def get_covariance_command(wildcards):
    model = study.models[wildcards.model]
    return covariance_command(wildcards.model, model["covariance"], model.get("architecture"))


def get_training_requests(wildcards):
    return f"results/datasets/{study.models[wildcards.model]['dataset']}/training.json"


def get_trained_editor(wildcards):
    path = get_stream(wildcards).trained_editor
    return f"results/editors/{path}" if path else []


def get_editor_training(wildcards):
    """What a trained editor depends on besides model, requests and code: its layers, and how it is trained."""
    stream = TRAINED_EDITORS["{model}/{method}.{key}.safetensors".format(**wildcards)]
    return {
        "editor": stream.editor,
        "hyperparameters": {"layers": stream.hyperparameters["layers"]},
        "training": stream.training,
    } | ({"architecture": stream.architecture} if stream.architecture else {})


def get_training_code(wildcards):
    return TRAINING_CODE[get_editor_training(wildcards)["editor"]]


def get_stream(wildcards):
    return study.streams[STREAM.format(**wildcards)]


def get_stream_settings(wildcards):
    """What the stream's results depend on, as plain values that Snakemake can compare."""
    stream = asdict(get_stream(wildcards))
    elsewhere = ["model", "dataset", "method", "setting", "defaults", "needs_covariance", "training"]
    elsewhere += [] if stream["architecture"] else ["architecture"]
    return {name: value for name, value in stream.items() if name not in elsewhere}


def get_requests(wildcards):
    return f"results/datasets/{wildcards.dataset}/requests.json"


def get_covariance(wildcards):
    return get_covariance_path(wildcards.model) if get_stream(wildcards).needs_covariance else []


def get_method_code(wildcards):
    return METHOD_CODE[get_stream(wildcards).editor]


def get_figure_results(wildcards):
    """The files that a figure is drawn from."""
    names = ["metrics.jsonl", *FURTHER_RESULTS.get(wildcards.figure, ())]
    return [f"results/streams/{path}/{name}" for path in study.figures[wildcards.figure] for name in names]


def get_figure_parts(wildcards):
    """Stream directories and options; in a sweep one part per model and method, as each has its own default."""
    parts = {}
    for path in study.figures[wildcards.figure]:
        stream, options = study.streams[path], {}
        if wildcards.figure not in ("zscore", "cost"):
            options["protocol"] = stream.protocols[0]
        if wildcards.figure in SWEPT:
            options["defaults"] = {name: stream.defaults[name] for name in SWEPT[wildcards.figure]}
        key = (stream.model, stream.method) if wildcards.figure in SWEPT else ()
        parts.setdefault(key, [options, []])[1].append(f"results/streams/{path}")
    return list(parts.values())


def get_trials():
    return [[trial.model, trial.method, trial.values, list(trial.paths)] for trial in study.trials]


def check_values():
    """Hold every hyper-parameter to the method that has it, in a process of its own: it has to import torch."""
    check = [sys.executable, "scripts/check_values.py", study.name]
    if subprocess.run(check).returncode:
        raise WorkflowError(f"study {study.name} was not started")


def keep_out_of_running_study():
    """Hold a lock that the kernel releases however this process ends; profiles/default turns Snakemake's own off.

    Snakemake's lock outlives a killed run and would have to be removed by hand.
    """
    lock = os.open(".snakemake/running", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise WorkflowError(f"another snakemake is running in {os.getcwd()}; wait for it, or stop it") from None
