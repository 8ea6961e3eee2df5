"""Run one stream of edits, evaluated on the way; started again after a kill, it goes on where it was."""

from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.starting import torch  # first
from coachhook.devices import device_name
from coachhook.gpus import take_gpus
from coachhook.logs import log_to
from coachhook.preflight import Available, plan_stream, refuse_if_too_large
from coachhook.requests import read_requests
from coachhook.stream import StreamConfig, run_stream
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

wildcards, settings = snakemake.wildcards, dict(snakemake.params.stream)
names = (wildcards.dataset, wildcards.method, wildcards.setting, f"seed {wildcards.seed}")
log_to(snakemake.log[0], ", ".join(names))
torch.set_num_threads(snakemake.threads)
take_gpus(snakemake.resources.get("gpu", 0))  # this process's own until it ends
loading = {name: settings.pop(name) for name in ("device_map", "architecture") if name in settings}
config = StreamConfig(method=settings.pop("editor"), z_scores=True, **settings)
model_dir, device = Path(snakemake.input[0]).parent, "cuda" if torch.cuda.is_available() else "cpu"
# A fetched model may be large, and on a cluster nobody has asked this machine yet.
if (model_dir / "source.json").exists() and "device_map" not in loading:
    values = dict(config.hyperparameters)
    sizes = {"edits": config.edits, "batch_size": config.batch_size, "evaluate_every": config.evaluate_every}
    place = {"device": device, "architecture": loading.get("architecture"), "hyperparameters": values}
    needs = plan_stream(model_dir, config.method, values.pop("layers"), **sizes, **place)
    refuse_if_too_large(needs, Available.measure(device, snakemake.params.checkpoint))
run_stream(
    config,
    read_requests(snakemake.input.requests),
    model_dir,
    snakemake.input.covariance or None,
    out_dir=Path(snakemake.output.metrics).parent,
    checkpoint_dir=snakemake.params.checkpoint,
    code=snakemake.params.code,
    trained_editor=snakemake.input.trained_editor or None,
    base_answers_dir=snakemake.params.base_answers,
    **loading,
)
further = [Path(snakemake.output.metrics).parent / f"{name}.json" for name in ("fluency", "ability")]
write_job_provenance(
    snakemake,
    snakemake.params.stream | {"device": device_name()},
    also=[file for file, asked in zip(further, (config.fluency, config.ability), strict=True) if asked],
    measured=["cost.jsonl"],
)
