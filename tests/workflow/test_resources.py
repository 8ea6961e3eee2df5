"""What jobs ask for: more memory and time with each attempt, GPUs and disk as before; and what the profiles say."""

import re

import pytest
import yaml

from .conftest import ROOT, Project, copy_project

PROFILES = ROOT / "profiles"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """Without messages, so that a dry run shows what each job asks for."""
    project = copy_project(tmp_path_factory.mktemp("resources"))
    for path in (project.root / "workflow" / "rules").glob("*.smk"):
        path.write_text(re.sub(r"    message:\n.*\n", "", path.read_text(encoding="utf-8")), encoding="utf-8")
    return project


def asked(project: Project, attempt: int, study: str) -> dict[str, dict[str, int]]:
    """By rule and log file, the resources of every job at this attempt."""
    shown = project.snakemake("--dry-run", "--attempt", str(attempt), "--quiet", "host", study=study)
    found = {}
    for block in re.split(r"\n(?=rule |localrule )", shown):
        named = re.match(r"(?:local)?rule (\w+):", block)
        said = re.search(r"resources: (.*)", block)
        if named and named[1] != "all":
            log = re.search(r"log: (\S+)", block)[1]
            values = dict(pair.split("=") for pair in said[1].split(", "))
            found[f"{named[1]} {log}"] = {name: int(value) for name, value in values.items() if value.isdigit()}
    return found


@pytest.mark.parametrize("study", ["smoke", "paper"])
def test_a_job_that_is_sent_again_asks_for_more(project, study):
    first, third = asked(project, 1, study), asked(project, 3, study)
    assert first.keys() == third.keys()
    rules = {job.split()[0] for job in first}
    assert rules >= {"make_dataset", "edit_stream", "train_editor", "draw_figure", "aggregate", "compute_covariance"}
    for job, resources in first.items():
        assert resources["mem_mb"] >= 4000, job
        assert resources["runtime"] >= 60, job
        for name in ("mem_mb", "runtime"):
            assert third[job][name] == 3 * resources[name], (job, name)
        for name in ("disk_mb", "gpu"):
            assert third[job].get(name) == resources.get(name), (job, name)
    gpus = {job.split()[0] for job, resources in first.items() if resources.get("gpu")}
    assert gpus == ({"edit_stream", "compute_covariance", "train_editor"} if study == "paper" else set())


def test_a_cluster_gets_what_its_profile_and_its_partitions_say():
    default, slurm = (
        yaml.safe_load((PROFILES / name / "profile.yaml").read_text(encoding="utf-8")) for name in ("default", "slurm")
    )
    # The default profile is not read beside another one: what holds everywhere is said in both.
    shared = ("rerun-incomplete", "nolock", "keep-going", "max-checksum-file-size")
    assert {name: slurm[name] for name in shared} == {name: default[name] for name in shared}
    partitions = yaml.safe_load((ROOT / slurm["slurm-partition-config"]).read_text(encoding="utf-8"))["partitions"]
    assert [name for name, limits in partitions.items() if limits.get("max_gpu")] == ["gpu"]


@pytest.mark.parametrize("name", ["slurm/profile.yaml", "slurm/partitions.yaml", "default/profile.yaml"])
def test_every_value_of_a_profile_has_a_comment(name):
    text = (PROFILES / name).read_text(encoding="utf-8")
    values = [line for line in text.splitlines() if re.match(r"\s*[\w-]+: *[^\s#]", line)]
    assert len(values) > 1
    silent = [line for line in values if " # " not in line]
    assert silent == [line for line in silent if line.startswith(("executor: ", "printshellcmds: "))]
