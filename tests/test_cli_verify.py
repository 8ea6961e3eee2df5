import json

import pytest
from test_provenance import build
from typer.testing import CliRunner

from coachhook import provenance, verification
from coachhook.cli import app
from coachhook.code_digest import code_label
from coachhook.provenance import write_provenance


def call(*args):
    return CliRunner().invoke(app, ["verify", *(str(arg) for arg in args)])


@pytest.fixture
def results(tmp_path):
    """A model of two files, a stream of two, and a table; all as they were written."""
    build(tmp_path)
    project = tmp_path / "project"
    stream = project / "streams/s/provenance.json"
    write_provenance(
        stream,
        outputs=[stream.with_name("metrics.jsonl")],
        measured=[stream.with_name("cost.jsonl")],
        inputs=[project / "models/m/model.safetensors"],
        settings={"seed": 3},
        command="run stream",
        code=code_label("method", "memit"),
        root=project,
    )
    (project / "table.csv").write_text("method,mean\n")
    (project / "studies").mkdir()
    write_provenance(
        project / "studies/tables.provenance.json",
        outputs=[project / "table.csv"],
        inputs=[stream.with_name("metrics.jsonl")],
        settings={},
        command="tables",
        code=code_label("modules", "report"),
        root=project,
    )
    return project


def test_results_as_they_were_written(results):
    told = call(results)
    assert told.exit_code == 0
    assert told.stdout == "3 results, 5 files: as they were written, and all that they were made with is the same\n"
    assert call(results, "--strict").exit_code == 0
    for one in ("streams/s", "streams/s/metrics.jsonl", "streams/s/provenance.json", "studies/tables.provenance.json"):
        assert call(results / one).stdout.startswith("1 results, ") or one.startswith("studies")
        assert call(results / one).exit_code == 0


@pytest.mark.parametrize(
    ("file", "damage", "line"),
    [
        ("models/m/model.safetensors", None, "is missing"),
        ("models/m/model.safetensors", "weig", "is cut short: 4 of 7 bytes"),
        ("models/m/model.safetensors", "WEIGHTS", "was changed"),
        ("streams/s/metrics.jsonl", "{}\n{}\n", "was changed"),
        ("streams/s/cost.jsonl", None, "is missing"),
        ("streams/s/cost.jsonl", "", "is empty"),
        ("streams/s/cost.jsonl", '{"seconds":', "is cut short or was changed"),
        ("table.csv", "method,me", "is cut short: 9 of 12 bytes"),
        ("studies/tables.provenance.json", "{", "is cut short, or no JSON file; remove it, and run what made it again"),
        ("studies/tables.provenance.json", '{"format": 9}', "has format 9, this version knows 1; update coachhook"),
    ],
)
def test_damage_is_one_line_and_fails(results, file, damage, line):
    (results / file).unlink() if damage is None else (results / file).write_text(damage)
    told = call(results)
    assert told.exit_code == 1
    first, last = told.stdout.splitlines()
    assert first == f"damaged: {results / file} {line}"
    assert last.endswith("not all can be relied on; remove what is damaged, and run the study again")


def test_an_input_that_was_made_again_fails(results):
    model = results / "models/m"
    (model / "model.safetensors").write_text("others")
    write_provenance(
        model / "provenance.json", outputs=[model / "model.safetensors"], settings={}, command="train", root=results
    )
    told = call(results)
    assert told.exit_code == 1
    assert told.stdout.splitlines()[0] == (f"changed input: {model / 'provenance.json'} is another now (1 result)")


def test_an_input_that_was_made_again_with_the_same_bytes_is_the_same(results):
    model = results / "models/m"
    files = [model / "config.json", model / "model.safetensors"]
    before = (model / "provenance.json").read_bytes()
    write_provenance(model / "provenance.json", outputs=files, settings={}, command="train again", root=results)
    assert (model / "provenance.json").read_bytes() != before
    assert call(results).exit_code == 0


def test_an_absent_input_is_told_and_fails_only_when_strict(results):
    for file in (results / "models/m").iterdir():
        file.unlink()
    told = call(results / "streams")
    assert told.exit_code == 0
    assert told.stdout.splitlines() == [
        f"absent input: {results / 'models/m/provenance.json'} is not there (1 result)",
        "1 results, 2 files: as they were written, but not all that they were made with is here",
    ]
    assert call(results / "streams", "--strict").exit_code == 1


def test_other_versions_and_other_code_are_told_and_fail_only_when_strict(results, monkeypatch):
    versions = verification.package_versions() | {"torch": "9.9"}
    versions.pop("scipy")
    monkeypatch.setattr(verification, "package_versions", lambda: versions)
    monkeypatch.setattr(verification, "label_now", lambda label: {"report": None}.get(label.split()[1][:-1], "x: 0"))
    told = call(results)
    assert told.exit_code == 0
    shown = told.stdout.splitlines()
    assert shown[0].startswith("other code: method memit was ")
    assert shown[0].endswith(", is 0 (1 result)")
    assert shown[1] == "other code: modules report is no more (1 result)"
    scipy, torch = shown[2:4]
    assert scipy.startswith("other version: scipy was ")
    assert scipy.endswith(", is not installed (3 results)")
    assert torch.endswith(", is 9.9 (3 results)")
    assert call(results, "--strict").exit_code == 1


def test_json(results):
    (results / "table.csv").unlink()
    told = call(results, "--json")
    assert told.exit_code == 1
    content = json.loads(told.stdout)
    assert content["damaged"] == [{"what": str(results / "table.csv"), "problem": "is missing", "results": []}]
    assert (content["results"], content["files"], content["failed"]) == (3, 5, True)
    assert content["changed_inputs"] == content["missing_inputs"] == content["code"] == content["versions"] == []


def test_what_the_user_can_mend_is_one_line(tmp_path):
    for folder, words in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no provenance.json")):
        told = call(folder)
        assert told.exit_code == 1
        (line,) = told.stderr.strip().splitlines()
        assert line == f"error: RESULTS: {folder} {words}; give a folder of results"


def test_a_file_of_this_format_says_so(results):
    assert provenance.read_provenance(results / "streams/s/provenance.json").format == provenance.FORMAT == 1
