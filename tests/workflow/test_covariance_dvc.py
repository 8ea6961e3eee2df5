"""Covariances and DVC, with the real dvc and git: what is computed, what is restored, and what happens without them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from coachhook.study import covariance_command

from .conftest import ROOT, Project, copy_project

pytestmark = pytest.mark.dvc
MODELS = ("first", "second")
COMPUTES = "Running stage"
# What the rule does for a job, without Snakemake around it.
RUN_SCRIPT = """
import os, runpy, sys, types, yaml
from snakemake.iocontainers import InputFiles, OutputFiles, Params
from coachhook.study import covariance_command
model, key = sys.argv[1:]
settings = yaml.safe_load(open("config/models.yaml"))["models"][model]["covariance"]
stem = f"results/covariances/{model}.{key}"
command = {"command": covariance_command(model, settings), "stage": f"covariance@{model}"}
job = types.SimpleNamespace(
    wildcards=types.SimpleNamespace(model=model),
    config={"study": "smoke", "tiny": False, "records": "data"},
    input=InputFiles([f"results/models/{model}/model.safetensors"]),
    output=OutputFiles(fromdict={"link": f"{stem}.safetensors", "provenance": f"{stem}.provenance.json"}),
    params=Params(fromdict={**command, "threads": 1, "device_map": "", "code": "modules covariance texts: 0"}),
    resources={},
    log=[f"logs/{model}.log"],
)
os.makedirs("results/covariances", exist_ok=True)
sys.path.append("scripts")
runpy.run_path("scripts/compute_covariance.py", init_globals={"snakemake": job})
"""


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Two tiny models with their texts, written once: copies in other clones hold the same bytes."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(MODELS):
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=3, n_head=2, n_inner=16)
        model = GPT2LMHeadModel(config)
        for number, parameter in enumerate(model.parameters()):
            parameter.data.normal_(0, 0.1 + 0.01 * (seed + number % 3))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        (folder / name / "text.txt").write_text("The capital of France is Paris.\n" * 30, encoding="utf-8")
    return folder


def _project(root: Path, model_folders: Path, remote: Path | None = None) -> Project:
    project = copy_project(root)
    models = {
        name: {"dataset": "completions", "seed": 0, "covariance": {"layers": "0,1", "max_tokens": 100}, "editing": {}}
        for name in MODELS
    }
    (root / "config" / "models.yaml").write_text(yaml.safe_dump({"models": models, "hub_models": {}}), encoding="utf-8")
    if remote is not None:
        with open(root / ".dvc" / "config", "a", encoding="utf-8") as config:
            config.write(f"    remote = shared\n['remote \"shared\"']\n    url = {remote}\n")
    _put_models(project, model_folders)
    return project


def _put_models(project: Project, model_folders: Path) -> None:
    shutil.copytree(model_folders, project.root / "results" / "models", dirs_exist_ok=True)


def _covariance(project: Project, model: str = "first", key: str = "0" * 8) -> tuple[str, str]:
    """Run the rule's script; what it logged, and the digest of the file that streams read."""
    project.run("python", "-c", RUN_SCRIPT, model, key)
    log = (project.root / "logs" / f"{model}.log").read_text(encoding="utf-8")
    link = project.root / "results" / "covariances" / f"{model}.{key}.safetensors"
    return log, hashlib.sha256(link.read_bytes()).hexdigest()


def _provenance(project: Project, model: str = "first", key: str = "0" * 8) -> bytes:
    return (project.root / "results" / "covariances" / f"{model}.{key}.provenance.json").read_bytes()


def _set_tokens(project: Project, model: str, tokens: int) -> None:
    path = project.root / "config" / "models.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["models"][model]["covariance"]["max_tokens"] = tokens
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def _clone(project: Project, root: Path, model_folders: Path) -> Project:
    project.run("git", "clone", "--quiet", str(project.root), str(root))
    clone = Project(root)
    _put_models(clone, model_folders)
    return clone


@pytest.fixture(scope="module")
def shared(tmp_path_factory, model_folders):
    """A project with a remote, in which the first model's covariance was computed and pushed; and its digest."""
    remote = tmp_path_factory.mktemp("remote")
    project = _project(tmp_path_factory.mktemp("project"), model_folders, remote)
    project.commit()
    log, digest = _covariance(project)
    assert COMPUTES in log
    project.commit()
    return project, digest


def test_the_plain_command_is_the_stage_s_command(shared):
    project, _ = shared
    settings = yaml.safe_load((project.root / "config" / "models.yaml").read_text(encoding="utf-8"))
    lock = yaml.safe_load((project.root / "dvc.lock").read_text(encoding="utf-8"))
    command = lock["stages"]["covariance@first"]["cmd"]
    assert covariance_command("first", settings["models"]["first"]["covariance"]) == command


def test_so_it_is_for_models_from_the_hub(tmp_path):
    project = copy_project(tmp_path)
    project.commit()
    models = yaml.safe_load((tmp_path / "config" / "models.yaml").read_text(encoding="utf-8"))["hub_models"]
    program = (
        "from dvc.repo import Repo\n"
        f"for model in {sorted(models)}:\n"
        "    print(Repo().stage.load_one('dvc.yaml', f'hub_covariance@{model}').cmd)"
    )
    commands = [covariance_command(model, models[model]["covariance"]) for model in sorted(models)]
    assert project.run("python", "-c", program).splitlines() == commands


def test_a_second_run_computes_nothing_and_keeps_the_bytes(shared):
    project, digest = shared
    log, again = _covariance(project)
    assert COMPUTES not in log
    assert again == digest


def test_a_fresh_clone_restores_what_dvc_lock_names(shared, tmp_path, model_folders):
    project, digest = shared
    clone = _clone(project, tmp_path / "clone", model_folders)
    assert (clone.root / "dvc.lock").exists()
    log, restored = _covariance(clone)
    assert COMPUTES not in log
    assert restored == digest
    _covariance(project)  # again, at the commit that the clone has
    told = _provenance(clone)
    assert told == _provenance(project)
    assert json.loads(told)["versions"].keys() >= {"python", "coachhook", "torch", "transformers"}


def test_a_fresh_clone_without_dvc_lock_restores_from_the_run_cache(shared, tmp_path, model_folders):
    project, digest = shared
    clone = _clone(project, tmp_path / "clone", model_folders)
    (clone.root / "dvc.lock").unlink()
    log, restored = _covariance(clone)
    assert COMPUTES not in log
    assert restored == digest


def test_a_changed_parameter_computes_that_model_alone_and_leaves_the_earlier_file(shared, tmp_path):
    project = Project(tmp_path / "project")
    shutil.copytree(shared[0].root, project.root, symlinks=True)
    shutil.copy(ROOT / ".dvc" / "config", project.root / ".dvc" / "config")  # without the remote
    before = {"first": shared[1]}
    log, before["second"] = _covariance(project, "second")
    assert COMPUTES in log
    assert before["first"] != before["second"]
    _set_tokens(project, "first", 50)
    log, other = _covariance(project, "first", "1" * 8)
    assert COMPUTES in log
    assert other != before["first"]
    log, same = _covariance(project, "second")
    assert COMPUTES not in log
    assert same == before["second"]
    earlier = project.root / "results" / "covariances" / f"first.{'0' * 8}.safetensors"
    assert hashlib.sha256(earlier.read_bytes()).hexdigest() == before["first"]


def test_without_git_the_plain_command_computes_the_same_bytes(shared, tmp_path, model_folders):
    _, digest = shared
    project = _project(tmp_path / "project", model_folders)
    log, plain = _covariance(project)
    assert "not a git repository: computing without DVC" in log
    assert plain == digest


def test_a_dead_remote_is_said_and_computed_around(shared, tmp_path, model_folders):
    _, digest = shared
    dead = tmp_path / "file"
    dead.write_text("no folder")
    project = _project(tmp_path / "project", model_folders, dead / "remote")
    project.commit()
    log, computed = _covariance(project)
    assert "remote" in log
    assert "is kept here only" in log
    assert computed == digest
