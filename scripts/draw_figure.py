"""Gather the numbers of one figure as CSV, and draw it from them."""

from typing import TYPE_CHECKING

import pandas as pd

from coachhook import figures
from coachhook.logs import log_to
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

name = snakemake.wildcards.figure
log_to(snakemake.log[0], f"figure {name}")
parts = [figures.data(name, folders, **options) for options, folders in snakemake.params.parts]
figures.write_csv(pd.concat(parts, ignore_index=True), snakemake.output.csv)
figures.draw(name, snakemake.output.csv, snakemake.output.pdf, snakemake.output.png)
timed = ("csv", "pdf", "png") if name in snakemake.params.timed else ()
write_job_provenance(
    snakemake, {"figure": name, "parts": snakemake.params.parts}, measured=[f"{name}.{ending}" for ending in timed]
)
