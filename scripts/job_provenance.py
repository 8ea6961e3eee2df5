"""The provenance of a rule's outputs; every script that makes a result ends with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coachhook.provenance import write_provenance


def write_job_provenance(
    job,
    settings: Mapping[str, Any],
    *,
    also: Iterable[Path] = (),
    measured: Iterable[str] = (),
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write `job.output.provenance`, about all other outputs of a job.

    Arguments:
        job: what Snakemake calls `snakemake` in a script.
        also: outputs whose names no rule can know.
        measured: names of outputs that hold times.
    """
    provenance = job.output.provenance
    files = [Path(file) for file in job.output if file != provenance] + list(also)
    config = {"study": job.config["study"], **({"tiny": "true"} if job.config["tiny"] else {})}
    if not job.config["tiny"] and job.config["records"] != "data":
        config["records"] = "FOLDER"  # where they lie is this machine's affair
    target = next(str(file) for file in job.output)
    named = [f"{name}={value}" for name, value in config.items()]
    write_provenance(
        provenance,
        outputs=[file for file in files if file.name not in measured],
        measured=[file for file in files if file.name in measured],
        inputs=job.input,
        settings=settings,
        command=shlex.join(["snakemake", "--cores", "all", target, "--config", *named]),
        code=job.params.get("code"),
        versions=versions,
    )
