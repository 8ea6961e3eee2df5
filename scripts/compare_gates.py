"""Edit a stream once more, and measure its gate and others on the same edits."""

from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.starting import torch  # first
from coachhook.devices import device_name
from coachhook.figures import write_csv
from coachhook.gate_comparison import compare_gates
from coachhook.gpus import take_gpus
from coachhook.logs import log_to
from coachhook.requests import read_requests
from coachhook.stream import StreamConfig
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

wildcards, settings = snakemake.wildcards, dict(snakemake.params.stream)
log_to(snakemake.log[0], f"gates, {wildcards.dataset}, {wildcards.method}, seed {wildcards.seed}")
torch.set_num_threads(snakemake.threads)
take_gpus(snakemake.resources.get("gpu", 0))  # this process's own until it ends
model_dir, texts = Path(snakemake.input[0]).parent, Path(snakemake.input.text).read_text(encoding="utf-8")
frame = compare_gates(
    StreamConfig(method=settings.pop("editor"), **settings),
    read_requests(snakemake.input.requests),
    model_dir,
    snakemake.input.covariance,
    texts.splitlines(),
)
write_csv(frame, snakemake.output.gates)
write_job_provenance(snakemake, snakemake.params.stream | {"device": device_name()})
