import fcntl
import os
import sys
from dataclasses import asdict
from pathlib import Path

from snakemake.exceptions import WorkflowError

from coachhook.provenance import code_digest, method_digest
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
PROTOCOLS = next(iter(study.streams.values())).protocols
SWEPT = {"lambda": "covariance_weight", "layers": "layers", "alpha": "alpha", "batch_size": "batch_size"}
FURTHER_RESULTS = {"zscore": ["zscores.parquet"], "retention": ["records.parquet"]}
FIGURES = "figures" if study.name == "mini" else f"figures/{study.name}"

REPORT = "report.html" if study.name == "mini" else f"report-{study.name}.html"


wildcard_constraints:
    model="[a-z0-9-]+",
    dataset="[a-z0-9-]+",
    method="[a-z0-9-]+",
    setting="[A-Za-z0-9_=.,-]+",
    seed="[0-9]+",
    figure="|".join(study.figures),
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
    return covariance_command(wildcards.model, study.models[wildcards.model]["covariance"])


def get_stream(wildcards):
    return study.streams[STREAM.format(**wildcards)]


def get_stream_settings(wildcards):
    """What the stream's results depend on, as plain values that Snakemake can compare."""
    stream = asdict(get_stream(wildcards))
    return {
        name: value
        for name, value in stream.items()
        if name not in ("model", "dataset", "method", "setting", "defaults")
    }


def get_requests(wildcards):
    return f"results/datasets/{wildcards.dataset}/requests.json"


def get_covariance(wildcards):
    needed = "covariance_weight" in get_stream(wildcards).hyperparameters
    return get_covariance_path(wildcards.model) if needed else []


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
        if wildcards.figure in SWEPT:
            swept = SWEPT[wildcards.figure]
            options = {"default": stream.defaults[swept], "protocol": stream.protocols[0]}
        elif wildcards.figure != "zscore":
            options = {"protocol": stream.protocols[0]}
        key = (stream.model, stream.method) if wildcards.figure in SWEPT else ()
        parts.setdefault(key, [options, []])[1].append(f"results/streams/{path}")
    return list(parts.values())


def keep_out_of_running_study():
    """Hold a lock that the kernel releases however this process ends; profiles/default turns Snakemake's own off.

    Snakemake's lock outlives a killed run and would have to be removed by hand.
    """
    lock = os.open(".snakemake/running", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise WorkflowError(f"another snakemake is running in {os.getcwd()}; wait for it, or stop it") from None
