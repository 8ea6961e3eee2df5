"""Put a study's metrics in one table, the final ones in tables per round and protocol, a small file and in words."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook import figure_data, figures, report, table_formats, tables
from coachhook.logs import log_to
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

study = snakemake.params.study
log_to(snakemake.log[0], f"study {study}")
folder = Path(snakemake.output.main).parent
frame = figures.collect(snakemake.input.metrics)
figures.write_csv(frame, snakemake.output.metrics)
numbers = {}
texts = [Path(snakemake.input.introduction).read_text(encoding="utf-8"), snakemake.params.description]
for name, (kind, protocol, paths) in snakemake.params.tables.items():
    rows = tables.per_seed(figure_data.of_streams(frame, paths), protocol, kind)
    means = tables.over_seeds(rows)
    figures.write_csv(rows, folder / f"table_{name}.csv")
    table_formats.write_markdown(means, folder / f"table_{name}.md", kind)
    table_formats.write_latex(means, folder / f"table_{name}.tex", kind)
    numbers[name] = report.summary(means)
    texts.append(report.summary_text(means, study, kind))
Path(snakemake.output.main).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
Path(snakemake.output.text).write_text("\n\n".join(text.strip() for text in texts) + "\n", encoding="utf-8")
write_job_provenance(snakemake, {"study": study, "tables": snakemake.params.tables})
