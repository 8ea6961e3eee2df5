"""Restore a model's covariance through DVC, or compute it: in its DVC stage, or without DVC by the same command."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.gpus import take_gpus
from coachhook.logs import log_to
from coachhook.versions import computed_with
from coachhook.whole_files import whole_file
from dvc_stage import run, through_dvc
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

model, stage, link = snakemake.wildcards.model, snakemake.params.stage, Path(snakemake.output.link)
log_to(snakemake.log[0], f"covariance {model}")
take_gpus(snakemake.resources.get("gpu", 0))  # this process's own, and its children's, until it ends
environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
# Snakemake sets both to the cores there are, and sums depend on them.
environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(snakemake.params.threads))
environment |= {"COACHHOOK_DEVICE_MAP": snakemake.params.device_map}
command = shlex.split(snakemake.params.command)
output = Path("data/covariances", f"{model}.safetensors")
output.parent.mkdir(parents=True, exist_ok=True)
if not (stage and through_dvc(stage, environment)) and not run(*command, environment=environment):
    sys.exit(1)
link.unlink(missing_ok=True)
try:
    os.link(output, link)  # not a symbolic link: it must keep these bytes when DVC writes others under the same name
except OSError:
    with whole_file(link) as temporary:
        shutil.copyfile(output, temporary)
os.utime(link)  # restored files may be older than the model; Snakemake compares times
write_job_provenance(snakemake, {"command": snakemake.params.command}, versions=computed_with(link))
