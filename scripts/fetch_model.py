"""Fetch a base model from the hub; with tiny=true build a small one of the same family and depth from its config."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import coachhook.starting  # noqa: F401  first
from coachhook.hub_models import build_model, fetch_model, request_texts
from coachhook.logs import log_to
from coachhook.requests import read_requests
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0], f"base model {snakemake.wildcards.model}")
source, folder = dict(snakemake.params.source), Path(snakemake.output[0]).parent
seed = source.pop("seed")
if "hub" in source:
    fetch_model(source.pop("hub"), source.pop("revision"), folder, **source)
else:
    requests = [request for path in snakemake.input.examples for request in read_requests(path)]
    build_model(source["config"], request_texts(requests), folder, dtype=source["dtype"], seed=seed)
files = json.loads((folder / "source.json").read_text(encoding="utf-8"))["files"]
others = [folder / file for file in files if str(folder / file) not in snakemake.output]
write_job_provenance(snakemake, snakemake.params.source, also=others)
