"""Train an editor before any stream uses it; started again after a kill, it goes on where it was."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# Where other jobs run on the same cores, threads that spin while they wait slow training many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

from coachhook.starting import torch  # first
from coachhook.devices import device_name
from coachhook.gpus import take_gpus
from coachhook.hyperparameters import configure, registered
from coachhook.loading import load_base_model
from coachhook.logs import log_to
from coachhook.requests import read_requests
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

settings, editor = snakemake.params.settings, snakemake.params.settings["editor"]
log_to(snakemake.log[0], f"editor of {snakemake.wildcards.method} for {snakemake.wildcards.model}")
torch.set_num_threads(snakemake.threads)
take_gpus(snakemake.resources.get("gpu", 0))  # this process's own until it ends
method, folder = registered(editor).load(), Path(snakemake.input[0]).parent
method.train(
    *load_base_model(folder, **snakemake.params.loading),
    configure(editor, method.config_class, {**registered(editor).preset, **settings["hyperparameters"]}),
    configure(editor, method.training_class, settings["training"]),
    read_requests(snakemake.input.requests),
    out=snakemake.output.editor,
    checkpoint=snakemake.params.checkpoint,
    seed=snakemake.params.seed,
)
settings = {"settings": settings, "loading": snakemake.params.loading, "seed": snakemake.params.seed}
write_job_provenance(snakemake, settings | {"device": device_name()})
