"""Train the base model that a study edits, until it recalls its facts."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# Where other jobs run on the same cores, threads that spin while they wait slow training many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import coachhook.starting  # noqa: F401  first
from coachhook.base_model import TrainingConfig, train_base_model
from coachhook.logs import log_to
from coachhook.world import read_facts
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0], f"base model {snakemake.wildcards.model}")
train_base_model(
    read_facts(snakemake.input.facts),
    Path(snakemake.input.lines).read_text(encoding="utf-8").splitlines(),
    TrainingConfig(**snakemake.params.training),
    Path(snakemake.output.text).parent,
    seed=snakemake.params.seed,
    threads=snakemake.params.threads,
)
settings = {name: snakemake.params[name] for name in ("training", "seed", "threads")}
write_job_provenance(snakemake, settings, measured=["training.json"])
