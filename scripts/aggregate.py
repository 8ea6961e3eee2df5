"""Put a study's metrics in one table, the main ones in tables per protocol and a small file for DVC, and in words."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook import figures, report
from coachhook.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

study, protocols = snakemake.params.study, snakemake.params.protocols
log_to(snakemake.log[0], f"study {study}")
tables = Path(snakemake.output.main).parent
frame = figures.collect(snakemake.input.metrics)
figures.write_csv(frame, snakemake.output.metrics)
for protocol in protocols:
    means = report.table(frame, protocol)
    figures.write_csv(means, tables / f"table-{protocol}.csv")
    report.write_markdown(means, tables / f"table-{protocol}.md")
main = {protocol: report.summary(frame, protocol) for protocol in protocols}
Path(snakemake.output.main).write_text(json.dumps(main, indent=2) + "\n", encoding="utf-8")
texts = (
    Path(snakemake.input.introduction).read_text(encoding="utf-8"),
    snakemake.params.description,
    *(report.summary_text(frame, study, protocol) for protocol in protocols),
)
Path(snakemake.output.text).write_text("\n\n".join(text.strip() for text in texts) + "\n", encoding="utf-8")
