"""A study on a real SLURM of one node: jobs are cancelled, killed, short of memory, and its results stay the same."""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from workflow.conftest import Project, copy_project

pytestmark = pytest.mark.study

HERE = Path(__file__).parent
STUDY = {
    "description": "Three streams of a model as small as the smoke study's.",
    "models": ["smoke"],
    "edits": 8,
    "batch_size": 1,
    "evaluate_every": 4,
    "protocols": ["easyedit"],
    "figures": {
        "hook": {"datasets": ["smoke-completions"], "methods": ["memit", "coachhook", "ft-m"], "seeds": [0]},
    },
}
# These say how long it took, and when and where it was.
TIMED = ("cost.jsonl", "provenance.json", "models/smoke/training.json")
CANCELLED, KILLED = "method~ft-m", "method~coachhook"
TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """What commands need in their environment to find a SLURM of this machine alone."""
    places = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=places)]
    if missing:
        pytest.skip(
            f"SLURM is not installed (no {', '.join(missing)}); `sh tests/slurm/install.sh` installs it or says why not"
        )
    folder = tmp_path_factory.mktemp("slurm")
    try:
        up = subprocess.run(["bash", HERE / "up.sh", folder], capture_output=True, text=True, timeout=180)
        assert up.returncode == 0, up.stdout + up.stderr
        yield {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
        }
    finally:
        subprocess.run(["bash", HERE / "down.sh", folder], timeout=120)


def small_study(root: Path) -> Project:
    """The study in a copy of this project; its base model is hastily trained, as it need not know anything."""
    project = copy_project(root)
    models = root / "config" / "models.yaml"
    settings = yaml.safe_load(models.read_text(encoding="utf-8"))
    settings["models"]["smoke"]["training"] |= {"steps": 40, "minimum_recall": 0.0}
    models.write_text(yaml.safe_dump(settings), encoding="utf-8")
    (root / "config" / "studies" / "cluster.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return project


def results(project: Project) -> dict[str, bytes]:
    folders = [project.root / "figures" / "cluster"]
    folders += [project.root / "results" / name for name in ("datasets", "models", "covariances", "streams", "studies")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if not str(path).endswith(TIMED)]
    return {str(path.relative_to(project.root)): path.read_bytes() for path in kept}


def gpus_of_streams(project: Project) -> set[str]:
    """Those that the streams' logs say they had."""
    logs = [path.read_text(encoding="utf-8") for path in (project.root / "logs" / "edit_stream").rglob("*.log")]
    assert len(logs) == len(STUDY["figures"]["hook"]["methods"])
    return {re.search(r"GPUs asked for: 1; this job's: (.*)", log)[1] for log in logs}


@dataclass(frozen=True)
class Job:
    """What squeue says of a job."""

    number: str
    state: str
    partition: str
    memory: str
    gpus: str
    limit: str
    rule: str  # and its wildcards


def jobs(environment: dict[str, str]) -> list[Job]:
    fields = "JobID:|,State:|,Partition:|,MinMemory:|,tres-per-job:|,TimeLimit:|,Comment:|"
    command = ["squeue", "--noheader", "--states=all", "--sort=i", "--Format", fields]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Job(*line.rstrip("|").split("|")) for line in lines]


def processes(project: Project, job: Job, script: str) -> list[int]:
    """This job's processes that run the script, as Snakemake has put it into the project's own folder."""
    start, end = f"{project.root}/.snakemake/scripts/".encode(), f".{script}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # not a process, or one that has ended, or not ours
            continue
        ours = any(argument.startswith(start) and argument.endswith(end) for argument in arguments)
        if ours and f"SLURM_JOB_ID={job.number}".encode() in variables:
            found.append(int(folder.name))
    return found


class Interruptions:
    """One running job is cancelled, and of another one the process is killed, once each has stored a step."""

    def __init__(self, project: Project, environment: dict[str, str]):
        self.project, self.environment = project, environment
        self.cancelled, self.killed = None, None

    def go_on(self) -> None:
        if self.cancelled is None and self._stored(CANCELLED):
            for job in self._running(CANCELLED):
                subprocess.run(["scancel", job.number], env=self.environment, check=True)
                self.cancelled = job.number
        if self.killed is None and self._stored(KILLED):
            for job in self._running(KILLED):
                for process in processes(self.project, job, "edit_stream.py"):
                    os.kill(process, signal.SIGKILL)
                    self.killed = job.number

    def _stored(self, method: str) -> bool:
        steps = self.project.root.glob(f"results/checkpoints/*/*/{method}/*/*/000001.safetensors")
        return next(steps, None) is not None

    def _running(self, method: str) -> list[Job]:
        name = method.partition("~")[2]
        return [job for job in jobs(self.environment) if job.state == "RUNNING" and f"_{name}_" in job.rule]


@pytest.fixture(scope="module")
def disturbed(cluster, tmp_path_factory):
    """The study after its run on the cluster: project, environment, interruptions and what Snakemake said."""
    project = small_study(tmp_path_factory.mktemp("on-slurm"))
    rule = project.root / "workflow" / "rules" / "covariance.smk"
    text = rule.read_text(encoding="utf-8")
    enough = 'mem_mb=growing(needed("covariance", "memory_mb"))'
    assert enough in text
    # Twice Snakemake, as in each job, and torch take more than this, and less than three times as much.
    rule.write_text(text.replace(enough, "mem_mb=growing(700)"), encoding="utf-8")
    environment = project.environment | cluster
    environment["PATH"] = os.pathsep.join([cluster["PATH"].partition(os.pathsep)[0], project.environment["PATH"]])
    interruptions = Interruptions(project, environment)
    command = ["snakemake", "--workflow-profile", "profiles/slurm", "--config", "study=cluster"]
    command += ["--set-resources", "edit_stream:gpu=1", "--slurm-init-seconds-before-status-checks", "5"]
    with open(project.root / "said.txt", "w") as said:
        run = subprocess.Popen(command, cwd=project.root, env=environment, stdout=said, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 1500
            while run.poll() is None and time.monotonic() < deadline:
                interruptions.go_on()
                time.sleep(0.1)
        finally:
            run.kill()
            run.wait()
    said = (project.root / "said.txt").read_text(encoding="utf-8")
    assert run.returncode == 0, said[-5000:]
    return project, environment, interruptions, said


def test_the_study_completes_though_jobs_are_cancelled_killed_and_short_of_memory(disturbed):
    project, environment, interruptions, _ = disturbed
    sent = jobs(environment)
    assert {job.number: job.state for job in sent}.items() >= {
        (interruptions.cancelled, "CANCELLED"),
        (interruptions.killed, "FAILED"),
    }
    ended = {}
    for job in sent:
        ended.setdefault(job.rule, []).append(job)
    assert {attempts[-1].state for attempts in ended.values()} == {"COMPLETED"}
    (short,) = [attempts for rule, attempts in ended.items() if rule.startswith("rule_compute_covariance")]
    assert [job.memory for job in short] == ["700M", "1400M", "2100M"][: len(short)]
    assert [job.state for job in short[:-1]] == ["FAILED"] * max(1, len(short) - 1)
    (log,) = (project.root / "logs" / "slurm").rglob(f"{short[0].number}.log")
    assert "exceeded memory limit" in log.read_text(encoding="utf-8")
    others = [attempts for attempts in ended.values() if attempts is not short]
    assert sorted(len(attempts) for attempts in others) == [1] * (len(others) - 2) + [2, 2]
    assert [job.limit for job in short[:2]] == ["4:00:00", "8:00:00"]


def test_streams_get_a_gpu_each_and_go_where_gpus_are(disturbed):
    project, environment, _, said = disturbed
    sent = jobs(environment)
    streams = [job for job in sent if job.rule.startswith("rule_edit_stream")]
    assert {(job.partition, job.gpus) for job in streams} == {("gpu", "gres:gpu:1")}
    assert {(job.partition, job.gpus) for job in sent if job not in streams} == {("cpu", "N/A")}
    assert gpus_of_streams(project) <= {"0", "1"}
    rules = {job.rule.split("_wildcards_")[0].removeprefix("rule_") for job in sent}
    assert rules == {"make_dataset", "train_base_model", "compute_covariance", "edit_stream", "draw_figure"}
    assert "Study cluster: tables" in said  # beside Snakemake, as the report is


def test_results_are_those_of_a_local_run_byte_by_byte(disturbed, tmp_path):
    local, command = small_study(tmp_path), ["snakemake", "--cores", "2", "--config", "study=cluster"]
    gpus = ["--resources", "gpu=2", "--set-resources", "edit_stream:gpu=1"]
    local.run("env", "CUDA_VISIBLE_DEVICES=0,1", *command, *gpus)
    expected, found = results(local), results(disturbed[0])
    assert len(expected) > 20
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert gpus_of_streams(local) <= {"0", "1"}
    assert "Nothing to be done" in disturbed[0].run(*command)
