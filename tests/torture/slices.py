"""A slice of the smoke study that takes a minute: of the finished study, a covariance, four streams and one figure."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from workflow.conftest import Project

from .comparison import result_files

METHODS = ("memit", "ft-m", "rect", "coachhook")
_FIGURE = "zscore"  # drawn from the last of them alone
_STREAM_FILES = ("metrics.jsonl", "records.parquet", "zscores.parquet", "cost.jsonl", "provenance.json")
_BEFORE = ("results/datasets/", "results/models/", "results/base_answers/", "results/covariances/", "data/covariances/")


def stream(method: str) -> str:
    """The folder of a stream of the slice, below results/streams or results/checkpoints."""
    return f"model~smoke/dataset~smoke-completions/method~{method}/setting~default/seed~0"


COMMAND = (
    *("snakemake", "--cores", "2", f"figures/smoke/{_FIGURE}.png"),
    *(f"results/streams/{stream(method)}/metrics.jsonl" for method in METHODS),
    *("--config", "study=smoke"),
)


def slice_of(finished: Project, root: Path) -> Project:
    """A copy of the finished smoke study that has no other results than what COMMAND needs and makes."""
    shutil.copytree(finished.root, root, symlinks=True)
    kept = {f"results/streams/{stream(method)}/{name}" for method in METHODS for name in _STREAM_FILES}
    kept |= {f"figures/smoke/{_FIGURE}.{ending}" for ending in ("csv", "pdf", "png")}
    kept.add(f"results/figures/smoke/{_FIGURE}.provenance.json")
    for name, path in result_files(root).items():
        if name not in kept and not name.startswith(_BEFORE):
            path.unlink()
    return Project(root)


def undone(slice_: Project, root: Path, *more: str) -> Project:
    """A copy of the slice whose streams and figure have still to be made, and what was in the folders `more`."""
    shutil.copytree(slice_.root, root, symlinks=True)
    for name in ("results/streams", "results/checkpoints", "results/figures", "figures", *more):
        shutil.rmtree(root / name)
    return Project(root)


@contextmanager
def without_streams(slice_: Project) -> Iterator[Project]:
    """An `undone` copy for a while, where every user may work."""
    with TemporaryDirectory() as folder:
        yield undone(slice_, Path(folder, "project"))
