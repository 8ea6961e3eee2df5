"""Put the metrics of all streams of a study in one table, those that only figures show included."""

from typing import TYPE_CHECKING

from coachhook import figures
from coachhook.logs import log_to
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0], "metrics")
figures.write_csv(figures.collect(snakemake.input.metrics), snakemake.output.metrics)
write_job_provenance(snakemake, {"study": snakemake.params.study})
