"""Put all metrics of a study in one table, its main metrics in a small file for DVC, and what came out in words."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook import figures, report
from coachhook.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0], f"study {snakemake.params.study}")
study, protocol = snakemake.params.study, snakemake.params.protocol
frame = figures.collect(snakemake.input.metrics)
figures.write_csv(frame, snakemake.output.table)
main = {protocol: report.summary(frame, protocol)}
Path(snakemake.output.main).write_text(json.dumps(main, indent=2) + "\n", encoding="utf-8")
texts = (
    Path(snakemake.input.introduction).read_text(encoding="utf-8"),
    snakemake.params.description,
    report.summary_text(frame, study, protocol),
)
Path(snakemake.output.text).write_text("\n\n".join(text.strip() for text in texts) + "\n", encoding="utf-8")
