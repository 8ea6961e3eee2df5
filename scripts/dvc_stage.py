"""Commands of a job, their output in its log, and the job's DVC stage restored or computed by them."""

import shlex
import shutil
import subprocess

from coachhook.logs import logger


def run(*command: str, environment: dict[str, str]) -> bool:
    """Run a command, its output in our log; True when it succeeded."""
    logger.info("$ %s", shlex.join(command))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        for line in job.stdout:
            logger.info("%s", line.rstrip())
    return job.returncode == 0


def through_dvc(stage: str, environment: dict[str, str]) -> bool:
    """Let DVC restore or compute the stage's output; False, with the reason in the log, where it cannot."""

    def in_stage(*command: str) -> bool:
        return run(*command, environment=environment)

    missing = [tool for tool in ("git", "dvc") if not shutil.which(tool, path=environment["PATH"])]
    if missing or not in_stage("git", "rev-parse", "--is-inside-work-tree"):
        logger.info("%s: computing without DVC", f"no {missing[0]}" if missing else "not a git repository")
        return False
    remotes = subprocess.run(["dvc", "remote", "list"], env=environment, capture_output=True, text=True).stdout
    reachable = bool(remotes.strip()) and in_stage("dvc", "fetch", "--run-cache", stage)
    if remotes.strip() and not reachable:
        logger.info("nothing could be fetched from the DVC remote: going on with what is here")
    repro = ["dvc", "--wait-for-lock", "repro", "--single-item"]
    done = (reachable and in_stage(*repro, "--pull", stage)) or in_stage(*repro, stage)
    if done and remotes.strip() and not in_stage("dvc", "push", "--run-cache", stage):
        logger.info("the DVC remote took nothing: the covariance is kept here only")
    return done
