"""The provenance of a study's results: complete, alike in other folders and with more jobs at once, and verified."""

import os
import re
import shlex
import shutil
import socket

import pytest

from coachhook.provenance import read_provenance

from .conftest import Project

pytestmark = pytest.mark.study
STREAM = "model~smoke/dataset~smoke-completions/method~{}/setting~default/seed~0"
RESULTS = ("datasets", "models", "covariances", "editors", "streams")
TIMES = ("cost.jsonl", "training.json")  # hold times


def files(project: Project, *folders: str) -> dict[str, os.PathLike]:
    found = {}
    for folder in folders:
        for path in (project.root / "results" / folder).rglob("*"):
            if path.is_file() and path.name != ".snakemake_timestamp":
                found[str(path.relative_to(project.root))] = path
    return found


def test_every_file_of_every_result_stands_in_a_provenance(finished):
    told = set()
    provenances = {name: path for name, path in files(finished, *RESULTS, "figures").items() if "provenance" in name}
    for name, path in provenances.items():
        content = read_provenance(path)
        told |= {os.path.normpath(os.path.join(os.path.dirname(name), file)) for file in content.outputs}
        told |= {os.path.normpath(os.path.join(os.path.dirname(name), file)) for file in content.measured}
        assert content.revision == finished.run("git", "rev-parse", "HEAD").strip()
        assert content.code
    assert told >= set(files(finished, *RESULTS)) - set(provenances)
    figures = [path.relative_to(finished.root) for path in (finished.root / "figures" / "smoke").iterdir()]
    assert told >= {str(path) for path in figures}
    unstable = {name for path in provenances.values() for name in map(os.path.basename, read_provenance(path).measured)}
    assert unstable == {*TIMES, "cost.csv", "cost.pdf", "cost.png"}


def test_it_tells_seeds_settings_and_the_chain_of_inputs_and_nothing_of_the_machine(finished):
    stream = finished.root / "results" / "streams" / STREAM.format("mend")
    told = read_provenance(stream / "provenance.json")
    assert told.settings["seed"] == 0
    assert told.settings["hyperparameters"]["layers"] == [1, 2, 3]
    inputs = {os.path.normpath(stream.relative_to(finished.root) / name) for name in told.inputs}
    (editor,) = (finished.root / "results" / "editors" / "smoke").glob("mend.*.safetensors")
    assert inputs == {
        "results/models/smoke/provenance.json",
        "results/datasets/smoke-completions/provenance.json",
        str(editor.with_suffix(".provenance.json").relative_to(finished.root)),
    }
    for path in (finished.root / "results").rglob("*provenance.json"):
        text = path.read_text(encoding="utf-8")
        assert str(finished.root) not in text
        assert socket.gethostname() not in re.findall(r"[\w.-]+", text)


def test_its_command_makes_the_result_again(finished):
    stream = finished.root / "results" / "streams" / STREAM.format("grace")
    command = shlex.split(read_provenance(stream / "provenance.json").command)
    away = (stream / "metrics.jsonl").rename(finished.root / "away")
    try:
        shown = finished.run(*command, "--dry-run")
        assert re.search(r"^total +1$", shown, re.MULTILINE), shown
        assert "grace (default) edits smoke" in shown
    finally:
        away.rename(stream / "metrics.jsonl")


def test_verify_passes_a_finished_study_and_names_what_was_damaged(finished):
    assert "as they were written, and all that they were made with is the same" in finished.run(
        "coachhook", "verify", "results", "--strict"
    )
    for name in ("results/models/smoke/model.safetensors", "figures/smoke/hook.csv"):
        path = finished.root / name
        content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        path.write_bytes(content[:-1])
        try:
            shown = finished.run("coachhook", "verify", "results", fails=True)
            lines = [line for line in shown.splitlines() if ": " in line]
            assert lines[0] == f"damaged: {name} is cut short: {len(content) - 1:,} of {len(content):,} bytes"
            assert len(lines) == 2
        finally:
            path.write_bytes(content)
            os.utime(path, ns=times)


@pytest.fixture(scope="module")
def one_by_one(finished, tmp_path_factory) -> Project:
    """The first streams and a figure of the smoke study's base model, made again elsewhere, one job at a time."""
    project = Project(tmp_path_factory.mktemp("elsewhere") / "in" / "order")
    shutil.copytree(finished.root, project.root, symlinks=True)
    for made in ("results/covariances", "results/editors", "results/streams", "results/checkpoints", "results/figures"):
        shutil.rmtree(project.root / made)
    for made in ("data/covariances", "figures", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(project.root / made)
    streams = [f"results/streams/{STREAM.format(method)}/metrics.jsonl" for method in ("mend", "coachhook-leverage")]
    project.snakemake(*streams, "figures/smoke/hook.png")
    return project


def test_one_job_at_a_time_or_two_write_the_same_bytes_provenance_included(finished, one_by_one):
    second = files(one_by_one, *RESULTS) | {"hook": one_by_one.root / "results/figures/smoke/hook.provenance.json"}
    first = files(finished, *RESULTS) | {"hook": finished.root / "results/figures/smoke/hook.provenance.json"}
    compared = {name for name in second if not name.endswith(TIMES)}
    assert len([name for name in compared if name.endswith("metrics.jsonl")]) == 6
    assert len([name for name in compared if name.endswith("provenance.json")]) == 6 + 2 + 1 + 1 + 1
    assert [name for name in sorted(compared) if first[name].read_bytes() != second[name].read_bytes()] == []
    for ending in ("csv", "png", "pdf"):
        drawn = [project.root / "figures" / "smoke" / f"hook.{ending}" for project in (finished, one_by_one)]
        assert drawn[0].read_bytes() == drawn[1].read_bytes()


def test_a_result_that_was_removed_is_made_again_to_the_same_bytes(one_by_one):
    stream = one_by_one.root / "results" / "streams" / STREAM.format("memit")
    before = {path.name: path.read_bytes() for path in stream.iterdir() if path.name not in TIMES}
    assert before.keys() == {"metrics.jsonl", "records.parquet", "zscores.parquet", "provenance.json"}
    for removed in (stream, one_by_one.root / "results" / "checkpoints" / STREAM.format("memit")):
        shutil.rmtree(removed)
    removed = f"results/streams/{STREAM.format('memit')}/metrics.jsonl"  # the figure is there, and would not ask for it
    one_by_one.run("snakemake", "--cores", "1", removed, "--config", "study=smoke")
    assert {name: (stream / name).read_bytes() for name in before} == before
