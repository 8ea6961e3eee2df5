"""Restore a model's covariance through DVC, or compute it: in its DVC stage, or without DVC by the same command."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.covariance_file import computed_with
from coachhook.gpus import take_gpus
from coachhook.logs import log_to, logger
from coachhook.whole_files import whole_file
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def run(*command: str) -> bool:
    """Run a command, its output in our log; True when it succeeded."""
    logger.info("$ %s", shlex.join(command))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        for line in job.stdout:
            logger.info("%s", line.rstrip())
    return job.returncode == 0


def through_dvc(stage: str) -> bool:
    """Let DVC restore or compute the stage's output; False, with the reason in the log, where it cannot."""
    missing = [tool for tool in ("git", "dvc") if not shutil.which(tool, path=environment["PATH"])]
    if missing or not run("git", "rev-parse", "--is-inside-work-tree"):
        logger.info("%s: computing without DVC", f"no {missing[0]}" if missing else "not a git repository")
        return False
    remotes = subprocess.run(["dvc", "remote", "list"], env=environment, capture_output=True, text=True).stdout
    reachable = bool(remotes.strip()) and run("dvc", "fetch", "--run-cache", stage)
    if remotes.strip() and not reachable:
        logger.info("nothing could be fetched from the DVC remote: going on with what is here")
    repro = ["dvc", "--wait-for-lock", "repro", "--single-item"]
    done = (reachable and run(*repro, "--pull", stage)) or run(*repro, stage)
    if done and remotes.strip() and not run("dvc", "push", "--run-cache", stage):
        logger.info("the DVC remote took nothing: the covariance is kept here only")
    return done


model, stage, link = snakemake.wildcards.model, snakemake.params.stage, Path(snakemake.output.link)
log_to(snakemake.log[0], f"covariance {model}")
take_gpus(snakemake.resources.get("gpu", 0))  # this process's own, and its children's, until it ends
environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
# Snakemake sets both to the cores there are, and sums depend on them.
environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(snakemake.params.threads))
environment |= {"COACHHOOK_DEVICE_MAP": snakemake.params.device_map}
output = Path("data/covariances", f"{model}.safetensors")
output.parent.mkdir(parents=True, exist_ok=True)
if not (stage and through_dvc(stage)) and not run(*shlex.split(snakemake.params.command)):
    sys.exit(1)
link.unlink(missing_ok=True)
try:
    os.link(output, link)  # not a symbolic link: it must keep these bytes when DVC writes others under the same name
except OSError:
    with whole_file(link) as temporary:
        shutil.copyfile(output, temporary)
os.utime(link)  # restored files may be older than the model; Snakemake compares times
write_job_provenance(snakemake, {"command": snakemake.params.command}, versions=computed_with(link))
