"""Projects to run the workflow in: copies of this one, so that no test touches its results."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
PARTS = (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "Snakefile", "dvc.yaml", "environment.yml")
FOLDERS = ("config", "workflow", "profiles", "scripts", "src/coachhook", "data/examples")


@dataclass(frozen=True)
class Project:
    """A copy of this project; commands run in it see its own `src`."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        tools = str(Path(sys.executable).parent)
        return os.environ | {
            "PATH": os.pathsep.join([tools, os.environ["PATH"]]),
            "PYTHONPATH": str(self.root / "src"),
            "OMP_NUM_THREADS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "tester" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            # Two copies of the project are one commit.
            **{f"GIT_{who}_DATE": "2020-02-02T02:02:02Z" for who in ("AUTHOR", "COMMITTER")},
        }

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command in the project and return all it printed; it must succeed, or fail."""
        run = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
        assert (run.returncode != 0) == fails, f"{' '.join(command)} ended with {run.returncode}:\n{run.stdout}"
        return run.stdout

    def snakemake(self, *arguments: str, study: str = "smoke", tiny: bool = False, fails: bool = False) -> str:
        config = [f"study={study}", *(["tiny=true"] if tiny else [])]
        return self.run("snakemake", "--cores", "1", *arguments, "--config", *config, fails=fails)

    def jobs(self, *arguments: str, study: str = "smoke") -> set[str]:
        """Rules that would run now."""
        return set(self.job_counts(*arguments, study=study))

    def job_counts(self, *arguments: str, study: str = "smoke", tiny: bool = False) -> dict[str, int]:
        """How many jobs of each rule would run now."""
        text = self.snakemake("--dry-run", *arguments, study=study, tiny=tiny)
        lines = [line.split() for line in text.partition("Job stats:")[2].partition("total")[0].splitlines()]
        return {words[0]: int(words[-1]) for words in lines if words and words[-1].isdigit()}

    def commit(self) -> None:
        if not (self.root / ".git").exists():
            self.run("git", "init", "--quiet")
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "state")


def copy_project(root: Path) -> Project:
    for name in PARTS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Project(root)


@contextmanager
def changed(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


@contextmanager
def added(path: Path, text: str):
    path.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        path.unlink()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A git project in which the smoke study has been run. Tests leave it as it is, or put it back.

    Of several processes that test, one runs the study, and each has a copy of its own.
    """
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent  # of all of them
    project = Project(common / "finished")
    with FileLock(common / "finished.lock"):
        if not (project.root / "output.txt").exists():
            shutil.rmtree(project.root, ignore_errors=True)
            copy_project(project.root)
            project.commit()
            (project.root / "output.txt").write_text(project.snakemake("--cores", "2"), encoding="utf-8")
    own = Project(tmp_path_factory.mktemp("own") / "finished")
    shutil.copytree(project.root, own.root, symlinks=True)
    return own
