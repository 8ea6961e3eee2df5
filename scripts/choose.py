"""Choose each method's hyper-parameters among its trials, and list all trials."""

from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.figures import write_csv
from coachhook.logs import log_to
from coachhook.study import Trial
from coachhook.tuning import choose, search, write_chosen
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0], "tuning")
trials = [Trial(*trial) for trial in snakemake.params.trials]
found = search(trials, "results/streams", snakemake.params.protocol)
write_csv(found, snakemake.output.search)
for path in snakemake.output.tuned:
    write_chosen(choose(trials, found, Path(path).stem), path)
write_job_provenance(snakemake, {"trials": snakemake.params.trials, "protocol": snakemake.params.protocol})
