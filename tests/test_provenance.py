import json
import shutil
import subprocess

import pytest

from coachhook import __version__, provenance
from coachhook.provenance import ProvenanceError, git_revision, provenance_of, read_provenance, write_provenance
from coachhook.versions import package_versions
from coachhook.whole_files import file_digest

SETTINGS = {"seed": 3, "hyperparameters": {"layers": [1, 2], "alpha": 2.2}, 10: "ten", 2: "two"}


def build(root):
    """A model, and a stream made from it and from requests outside the project."""
    project = root / "project"
    for name, text in (("models/m/config.json", "{}"), ("models/m/model.safetensors", "weights")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    model = [project / "models/m" / name for name in ("config.json", "model.safetensors")]
    write_provenance(
        project / "models/m/provenance.json", outputs=model, settings={}, command="train", code=None, root=project
    )
    (root / "requests.json").write_text("[]")
    (project / "streams/s").mkdir(parents=True)
    (project / "streams/s/metrics.jsonl").write_text("{}\n")
    (project / "streams/s/cost.jsonl").write_text('{"seconds": 1}\n')
    path = project / "streams/s/provenance.json"
    write_provenance(
        path,
        outputs=[project / "streams/s/metrics.jsonl"],
        measured=[project / "streams/s/cost.jsonl"],
        inputs=[*model, root / "requests.json"],
        settings=SETTINGS,
        command="run stream",
        code="method memit: 0123",
        root=project,
    )
    return path


def test_a_result_is_told_with_what_it_was_made_of_and_with(tmp_path):
    path = build(tmp_path)
    told = read_provenance(path)
    assert (told.command, told.code, told.revision) == ("run stream", "method memit: 0123", None)
    assert told.settings == {"seed": 3, "hyperparameters": {"layers": [1, 2], "alpha": 2.2}, "10": "ten", "2": "two"}
    metrics = path.with_name("metrics.jsonl")
    assert {name: file.model_dump() for name, file in told.outputs.items()} == {
        "metrics.jsonl": {"bytes": 3, "sha256": file_digest(metrics).hex()}
    }
    assert told.measured == ["cost.jsonl"]
    assert told.elsewhere == {"requests.json": file_digest(tmp_path / "requests.json").hex()}
    assert told.versions == package_versions()
    assert told.versions["coachhook"] == __version__
    assert {"python", "torch", "transformers", "numpy"} <= set(told.versions)


def test_an_input_with_a_provenance_is_named_by_it_and_its_files_are_not_read(tmp_path, monkeypatch):
    path = build(tmp_path)
    model = tmp_path / "project/models/m/provenance.json"
    expected = read_provenance(model).outputs_digest
    assert read_provenance(path).inputs == {"../../models/m/provenance.json": expected}
    assert provenance_of(model.with_name("model.safetensors")) == model
    assert provenance_of(tmp_path / "requests.json") is None
    (model.with_name("notes.txt")).write_text("not of the model")
    assert provenance_of(model.with_name("notes.txt")) is None
    read = []
    monkeypatch.setattr(provenance, "file_digest", read.append)
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    build_inputs = [model.with_name("model.safetensors"), model.with_name("config.json")]
    write_provenance(path, outputs=[], inputs=build_inputs, settings={}, command="", root=tmp_path / "project")
    assert read == []


def test_a_result_of_one_file_has_a_provenance_of_its_name(tmp_path):
    file = tmp_path / "mini.1a2b3c4d.safetensors"
    file.write_text("matrix")
    beside = tmp_path / "mini.1a2b3c4d.provenance.json"
    write_provenance(beside, outputs=[file], settings={}, command="", root=tmp_path)
    assert provenance_of(file) == beside


def test_the_same_result_in_another_folder_has_the_same_bytes(tmp_path):
    first, second = build(tmp_path / "here"), build(tmp_path / "somewhere" / "else")
    assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path) not in first.read_text()


def test_an_incomplete_result_gets_none(tmp_path):
    path = tmp_path / "provenance.json"
    for outputs, inputs in (([tmp_path / "metrics.jsonl"], []), ([], [tmp_path / "requests.json"])):
        with pytest.raises(FileNotFoundError):
            write_provenance(path, outputs=outputs, inputs=inputs, settings={}, command="", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "is cut short, or no JSON file"),
        (lambda text: "", "is cut short, or no JSON file"),
        (lambda text: "[1]", "content: Input should be a valid dictionary"),
        (
            lambda text: text.replace('"format": 1', '"format": 2'),
            "has format 2, this version knows 1",
        ),
        (lambda text: text.replace('"seed": 3', '"seed": 4'), "was changed"),
        (lambda text: json.dumps({**json.loads(text), "outputs": []}), "outputs: Input should be a valid dictionary"),
        (lambda text: text.replace('"command"', '"comand"'), "command: Field required"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, damage, words):
    path = build(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ProvenanceError) as error:
        read_provenance(path)
    assert str(error.value).startswith(f"{path}: {words}")
    assert "\n" not in str(error.value)


def test_the_revision_is_that_of_the_project_itself(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=tester", "-c", "user.email=tester", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision(tmp_path) is None
    git("init", "--quiet")
    assert git_revision(tmp_path) is None  # nothing is committed
    git("commit", "--quiet", "--allow-empty", "--message", "state")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "inside").mkdir()
    assert git_revision(tmp_path / "inside") is None  # the repository is another project's
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) is None
