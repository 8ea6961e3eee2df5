"""A slice of the smoke study that takes a minute: a hastily trained model, a covariance, four streams, one figure."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from workflow.conftest import Project, copy_project

METHODS = ("memit", "ft-m", "rect", "ultraedit")
COMMAND = ("snakemake", "--cores", "2", "figures", "--config", "study=slice")
_STUDY = {
    "description": "A slice of the smoke study.",
    "models": ["smoke"],
    "edits": 6,
    "batch_size": 2,
    "evaluate_every": 2,
    "protocols": ["easyedit"],
    "figures": {"hook": {"datasets": ["smoke-completions"], "methods": [*METHODS], "seeds": [0]}},
}


def make_slice(root: Path) -> Project:
    """A copy of this project, in git, that has the slice as its study `slice`."""
    project = copy_project(root)
    models = project.root / "config" / "models.yaml"
    settings = yaml.safe_load(models.read_text(encoding="utf-8"))
    settings["models"]["smoke"]["training"] |= {"steps": 40, "minimum_recall": 0.0}
    models.write_text(yaml.safe_dump(settings), encoding="utf-8")
    (project.root / "config" / "studies" / "slice.yaml").write_text(yaml.safe_dump(_STUDY), encoding="utf-8")
    project.commit()
    return project


def stream(method: str) -> str:
    """The folder of a stream of the slice, below results/streams or results/checkpoints."""
    return f"model~smoke/dataset~smoke-completions/method~{method}/setting~default/seed~0"


@contextmanager
def without_streams(project: Project) -> Iterator[Project]:
    """A copy of the finished slice whose streams and figure have still to be made, where every user may work."""
    with TemporaryDirectory() as folder:
        root = Path(folder, "project")
        shutil.copytree(project.root, root, symlinks=True)
        for name in ("results/streams", "results/checkpoints", "figures"):
            shutil.rmtree(root / name)
        yield Project(root)
