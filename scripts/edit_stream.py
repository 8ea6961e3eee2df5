"""Run one stream of edits, evaluated on the way; started again after a kill, it goes on where it was."""

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from coachhook.logs import log_to
from coachhook.requests import read_requests
from coachhook.stream import StreamConfig, run_stream

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

wildcards, settings = snakemake.wildcards, dict(snakemake.params.stream)
names = (wildcards.dataset, wildcards.method, wildcards.setting, f"seed {wildcards.seed}")
log_to(snakemake.log[0], ", ".join(names))
torch.set_num_threads(snakemake.threads)
loading = {name: settings.pop(name) for name in ("device_map", "architecture") if name in settings}
checkpoint = Path(snakemake.params.checkpoint)
checkpoint.parent.mkdir(parents=True, exist_ok=True)
# A stream outlives a killed Snakemake; the next one waits here for it and then finds its work done.
with open(checkpoint.with_suffix(".lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    run_stream(
        StreamConfig(method=settings.pop("editor"), z_scores=True, **settings),
        read_requests(snakemake.input.requests),
        Path(snakemake.input[0]).parent,
        snakemake.input.covariance or None,
        out_dir=Path(snakemake.output.metrics).parent,
        checkpoint_dir=checkpoint,
        code=snakemake.params.code,
        trained_editor=snakemake.input.trained_editor or None,
        base_answers_dir=snakemake.params.base_answers,
        **loading,
    )
