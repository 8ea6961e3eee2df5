import os
import sys
from dataclasses import asdict
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from coachhook import resources
from coachhook.code_digest import code_label
from coachhook.study import StudyError, check_config, covariance_command, load_study, settings_key

# Rules call snakemake, dvc and coachhook: those of this environment, activated or not.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))
# glibc hands blocks of over 32 MB back at once, and training asks for them again in each step: a tenth of its time.
os.environ.update(MALLOC_MMAP_THRESHOLD_="4000000000", MALLOC_TRIM_THRESHOLD_="4000000000")

SCHEMAS = Path(workflow.basedir) / "workflow" / "schemas"

config["tiny"] = yaml.safe_load(str(config["tiny"]))  # on the command line `true` is text

try:
    check_config(config, SCHEMAS)
    study = load_study(config["study"], Path("config"), SCHEMAS, config["tiny"])
except StudyError as error:
    raise WorkflowError(str(error)) from None

RECORDS = Path("data/examples" if config["tiny"] else config["records"])
CONFIG = [f"{name}={value}" for name, value in config.items()]
# A model trained here names the data set whose facts it learns; all others are fetched, or with tiny=true built.
TRAINED_MODELS = [name for name, entry in study.models.items() if "dataset" in entry]
FETCHED_MODELS = [name for name in study.models if name not in TRAINED_MODELS]
STREAM = "model~{model}/dataset~{dataset}/method~{method}/setting~{setting}/seed~{seed}"
METHOD_CODE = {editor: code_label("method", editor) for editor in {stream.editor for stream in study.streams.values()}}
TRAINED_EDITORS = {stream.trained_editor: stream for stream in study.streams.values() if stream.training is not None}
TRAINING_CODE = {stream.editor: code_label("training", stream.editor) for stream in TRAINED_EDITORS.values()}
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
# What figures are drawn from, where it is not a stream's metrics alone.
RESULTS_OF = {
    "zscore": ["metrics.jsonl", "zscores.parquet"],
    "retention": ["metrics.jsonl", "records.parquet"],
    "cost": ["metrics.jsonl", "cost.jsonl"],
    "gate": ["gates.csv"],
}
TIMED_FIGURES = ["cost"]  # drawn from times, so that no two runs draw the same
# `full` is `mini` with more seeds, and `tuning` finds the values of both: they share a folder.
FIGURES = "figures" if study.name in ("mini", "full", "tuning") else f"figures/{study.name}"
REPORT = "report.html" if study.name in ("mini", "full") else f"report-{study.name}.html"


wildcard_constraints:
    model="[a-z0-9-]+",
    dataset="[a-z0-9-]+",
    method="[a-z0-9-]+",
    setting="[A-Za-z0-9_=.,-]+",
    seed="[0-9]+",
    figure="|".join(study.figure_names) or "none",
    key="[0-9a-f]{8}",


def get_trained_files(model):
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    return [f"results/models/{model}/{name}" for name in names]


def get_fetched_files(model):
    """Of a fetched model's files those with names known beforehand; source.json holds the checksums of the others."""
    return [f"results/models/{model}/{name}" for name in ("config.json", "source.json")]


def get_model_files(wildcards):
    return (get_trained_files if wildcards.model in TRAINED_MODELS else get_fetched_files)(wildcards.model)


def get_model_source(wildcards):
    """What a fetched model is made of: where it is fetched from or, with tiny=true, its config."""
    entry = study.models[wildcards.model]
    return {name: entry[name] for name in ("hub", "revision", "dtype", "config", "seed") if name in entry}


def get_example_files(wildcards):
    """The text that the tokenizers of tiny models are trained on."""
    files = {str(path) for name in study.datasets for path in request_paths(name)} if config["tiny"] else ()
    return sorted(files)


def request_paths(dataset, with_training=True):
    """A data set's request files: the edited ones, further facts, and those that editors are trained on."""
    source = study.datasets[dataset]
    names = [source.get("file"), *source.get("more_facts", ())]
    names += [source.get("training", {}).get("file")] if with_training else []
    return [RECORDS / name for name in names if name]


def get_source(wildcards):
    return study.datasets[wildcards.dataset]


def get_request_files(wildcards):
    """Those that are there: a study can be planned without them, and `check_records` asks for them before any job."""
    return [str(path) for path in request_paths(wildcards.dataset) if path.exists()]


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


def get_covariance_text(wildcards):
    """The text that a model brings along; one from the hub has none, and its text comes from there too."""
    return [] if "hub" in study.models[wildcards.model] else f"results/models/{wildcards.model}/text.txt"


def get_covariance_stage(wildcards):
    """The stage of dvc.yaml; there is none for tiny models, which models.yaml does not name."""
    stage = "hub_covariance" if "hub" in study.models[wildcards.model] else "covariance"
    return None if config["tiny"] else f"{stage}@{wildcards.model}"


def get_covariance_command(wildcards):
    model = study.models[wildcards.model]
    return covariance_command(wildcards.model, model["covariance"], model.get("architecture"))


def get_training_requests(wildcards):
    dataset = get_editor_stream(wildcards).trained_on or study.models[wildcards.model]["dataset"]
    return f"results/datasets/{dataset}/training.json"


def get_trained_editor(wildcards):
    path = get_stream(wildcards).trained_editor
    return f"results/editors/{path}" if path else []


def get_editor_stream(wildcards):
    return TRAINED_EDITORS["{model}/{method}.{key}.safetensors".format(**wildcards)]


def get_editor_training(wildcards):
    """What a trained editor depends on besides model, requests and code: its layers, and how it is trained."""
    stream = get_editor_stream(wildcards)
    return {
        "editor": stream.editor,
        "hyperparameters": {"layers": stream.hyperparameters["layers"]},
        "training": stream.training,
    }


def get_training_code(wildcards):
    return TRAINING_CODE[get_editor_training(wildcards)["editor"]]


def get_stream(wildcards):
    return study.streams[STREAM.format(**wildcards)]


def get_stream_settings(wildcards):
    """What the stream's results depend on, as plain values that Snakemake can compare."""
    stream = asdict(get_stream(wildcards))
    elsewhere = ("model", "dataset", "method", "setting", "defaults", "needs_covariance", "training", "trained_on")
    own = {name: value for name, value in stream.items() if name not in (*elsewhere, "architecture")}
    own = {name: value for name, value in own.items() if value is not None}
    return own | get_loading(wildcards)


def get_loading(wildcards):
    """How a model is spread over devices, and where it keeps its parts, where its entry says so."""
    entry = study.models[wildcards.model]
    return {name: entry[name] for name in ("device_map", "architecture") if name in entry}


def get_device_map(wildcards):
    """How the model is spread. DVC's stage does not name it: where a covariance is computed changes nothing of it."""
    return study.models[wildcards.model].get("device_map", "")


def get_requests(wildcards):
    return f"results/datasets/{wildcards.dataset}/requests.json"


def get_covariance(wildcards):
    return get_covariance_path(wildcards.model) if get_stream(wildcards).needs_covariance else []


def get_method_code(wildcards):
    return METHOD_CODE[get_stream(wildcards).editor]


def get_gates_code(wildcards):
    return code_label("method", get_stream(wildcards).editor, "gate_comparison")


def get_table_streams():
    """The streams of all tables; a further value in a figure thus leaves the tables as they are."""
    return sorted({path for paths in study.tables.values() for path in paths})


def get_figure_results(wildcards):
    """The files that a figure is drawn from."""
    if wildcards.figure == "contradictions":
        return sorted({f"results/datasets/{draw.dataset}/requests.json" for draw in study.draws})
    names = RESULTS_OF.get(wildcards.figure, ["metrics.jsonl"])
    return [f"results/streams/{path}/{name}" for path in study.figures[wildcards.figure] for name in names]


def get_figure_parts(wildcards):
    """Stream directories and options; in a sweep one part per model and method, as each has its own default."""
    if wildcards.figure == "contradictions":
        return get_drawn_requests()
    parts = {}
    for path in study.figures[wildcards.figure]:
        stream, options = study.streams[path], {}
        if wildcards.figure not in ("zscore", "cost", "gate"):
            options["protocol"] = stream.protocols[0]
        if wildcards.figure in SWEPT:
            options["defaults"] = {name: stream.defaults[name] for name in SWEPT[wildcards.figure]}
        key = (stream.model, stream.method) if wildcards.figure in SWEPT else ()
        parts.setdefault(key, [options, []])[1].append(f"results/streams/{path}")
    return list(parts.values())


def get_drawn_requests():
    """Of every data set of the figure `contradictions` its requests, and how streams are drawn from them."""
    parts = {}
    for draw in study.draws:
        options = {"dataset": draw.dataset, "edits": draw.edits, "seeds": []}
        part = parts.setdefault(draw.dataset, [options, [f"results/datasets/{draw.dataset}/requests.json"]])
        part[0]["seeds"].append(draw.seed)
    return list(parts.values())


def get_resources(job, name, wildcards):
    """What a job may take, from its model's entry."""
    entry = study.models[wildcards.model]
    if "hub" not in entry:
        return getattr(resources.SMALL, name)
    sizes = ()
    if job == "stream":
        stream = get_stream(wildcards)
        sizes = (len(stream.hyperparameters["layers"]), stream.edits)
    return getattr(getattr(resources, f"{job}_resources")(entry, *sizes), name)


def needed(job, name):
    """`get_resources` of this job as a function of wildcards, which is what rules take."""

    def get_needed(wildcards):
        return get_resources(job, name, wildcards)

    return get_needed


def growing(amount):
    """Memory or minutes, twice the amount in the second attempt, thrice in the third; profiles/slurm has `retries`."""

    def get_grown(wildcards, attempt):
        return attempt * (amount(wildcards) if callable(amount) else amount)

    return get_grown


def get_trials():
    return [[trial.model, trial.method, trial.values, list(trial.paths)] for trial in study.trials]
