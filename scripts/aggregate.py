"""Put a study's final metrics in tables per round and protocol, in a small file and in words."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook import figure_data, figures, report, table_formats, tables
from coachhook.logs import log_to
from coachhook.whole_files import write_text
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

study = snakemake.params.study
log_to(snakemake.log[0], f"study {study}")
folder = Path(snakemake.output.main).parent
frame = figures.collect(snakemake.input.metrics)
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
write_text(snakemake.output.main, json.dumps(numbers, indent=2) + "\n")
write_text(snakemake.output.text, "\n\n".join(text.strip() for text in texts) + "\n")
write_job_provenance(snakemake, {"study": study, "tables": snakemake.params.tables})
