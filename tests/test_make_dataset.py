import csv
import hashlib
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from request_records import FLAT, ROME, written

from coachhook import hub_files
from coachhook.requests import read_requests

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_dataset.py"
OUTPUTS = {"requests": "json", "training": "json", "facts": "json", "lines": "txt", "refused": "csv"}


def born(subject, new, true):
    rewrite = {
        **ROME["requested_rewrite"],
        "subject": subject,
        "target_new": {"str": new},
        "target_true": {"str": true},
    }
    return {"requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}


ADA, BEA = born("Ada", "Paris", "London"), born("Bea", "London", "Paris")


@pytest.fixture
def make_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("coachhook.logs.log_to", lambda path, name: None)

    def make(source, files):
        outputs = {name: tmp_path / f"{name}.{ending}" for name, ending in OUTPUTS.items()}
        job = SimpleNamespace(
            log=[tmp_path / "log"],
            wildcards=SimpleNamespace(dataset="real"),
            params=SimpleNamespace(source=source),
            input=SimpleNamespace(files=files),
            output=SimpleNamespace(**outputs),
        )
        runpy.run_path(str(SCRIPT), init_globals={"snakemake": job})
        with outputs["refused"].open(newline="", encoding="utf-8") as table:
            refused = [(row["record"], row["field"], row["file"]) for row in csv.DictReader(table)]
        return [request.subject for request in read_requests(outputs["requests"])], refused

    return make


def test_refused_records_of_all_files_are_listed(make_dataset, tmp_path):
    edited = written(tmp_path, [ADA, {"name": "x"}, BEA], "edited.json")
    further = written(tmp_path, [FLAT, {**FLAT, "prompt": "nobody"}], "further.json")
    subjects, refused = make_dataset({"file": "edited.json", "more_facts": ["further.json"]}, [edited, further])
    assert subjects == ["Ada", "Bea"]
    assert refused == [("2", "", str(edited)), ("2", "prompt", str(further))]
    assert make_dataset({"file": "edited.json"}, [written(tmp_path, [ADA, BEA])])[1] == []


def test_files_of_the_hub_are_edited_in_their_order(make_dataset, tmp_path, monkeypatch):
    files = {name: written(tmp_path, {"en": [record], "zh": []}, name) for name, record in (("b", BEA), ("a", ADA))}
    monkeypatch.setattr(hub_files, "hf_hub_download", lambda hub_id, file, **pin: files[file])
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()]
    source = {"hub": "some/facts", "files": list(files), "revision": "0" * 40, "sha256": digests, "part": "en"}
    assert make_dataset(source, []) == (["Bea", "Ada"], [])
