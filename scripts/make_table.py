"""Put the scores after the last batch in a table, all of one protocol."""

from typing import TYPE_CHECKING

from coachhook import figures, report
from coachhook.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

protocol = snakemake.wildcards.protocol
log_to(snakemake.log[0], f"table {protocol}")
means = report.table(figures.collect(snakemake.input.metrics), protocol)
figures.write_csv(means, snakemake.output.csv)
report.write_markdown(means, snakemake.output.markdown)
