import copy
import csv
import hashlib
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from request_records import FLAT, ROME, real, written
from snakemake.iocontainers import InputFiles, OutputFiles, Params

from coachhook import hub_files
from coachhook.hub_files import HubFileError
from coachhook.study import load_study

ROOT = Path(__file__).parents[1]
OUTPUTS = {"requests": "json", "training": "json", "facts": "json", "lines": "txt", "refused": "csv"}
STUDIES = [load_study(name, ROOT / "config", ROOT / "workflow" / "schemas") for name in ("paper", "long", "modern")]
REAL = {
    stream.dataset: study.datasets[stream.dataset]
    for study in STUDIES
    for stream in (*study.streams.values(), *study.draws)
}


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

    def make(source):
        outputs = {name: tmp_path / f"made.{name}.{ending}" for name, ending in OUTPUTS.items()}
        job = SimpleNamespace(
            log=[tmp_path / "log"],
            wildcards=SimpleNamespace(dataset="real"),
            params=Params(fromdict={"source": source, "records": str(tmp_path), "code": "modules world: 0"}),
            config={"study": "paper", "tiny": False, "records": str(tmp_path)},
            input=InputFiles(),
            output=OutputFiles(fromdict=outputs | {"provenance": tmp_path / "made.provenance.json"}),
        )
        monkeypatch.syspath_prepend(ROOT / "scripts")
        runpy.run_path(str(ROOT / "scripts" / "make_dataset.py"), init_globals={"snakemake": job})
        with outputs["refused"].open(newline="", encoding="utf-8") as table:
            refused = [(row["record"], row["field"], row["file"]) for row in csv.DictReader(table)]
        requests, training = (json.loads(outputs[name].read_text()) for name in ("requests", "training"))
        return SimpleNamespace(
            subjects=[request["subject"] for request in requests],
            targets=[request["target_new"] for request in requests],
            trained_on=[request["subject"] for request in training],
            facts=json.loads(outputs["facts"].read_text()),
            refused=refused,
        )

    return make


def test_refused_records_of_all_files_are_listed(make_dataset, tmp_path):
    edited = written(tmp_path, [ADA, {"name": "x"}, BEA], "edited.json")
    further = written(tmp_path, [FLAT, {**FLAT, "prompt": "nobody"}], "further.json")
    made = make_dataset({"file": "edited.json", "facts": "relations", "more_facts": ["further.json"]})
    assert made.subjects == ["Ada", "Bea"]
    assert made.facts
    assert made.refused == [("2", "", str(edited)), ("2", "prompt", str(further))]
    made = make_dataset({"file": "edited.json", "training": {"file": "further.json"}})
    assert made.trained_on == ["Ada Lovelace"]
    assert made.refused == [("2", "", str(edited)), ("2", "prompt", str(further))]
    written(tmp_path, [ADA, BEA], "good.json")
    assert make_dataset({"file": "good.json"}).refused == []


def test_files_of_the_hub_are_edited_in_their_order(make_dataset, tmp_path, monkeypatch):
    files = {name: written(tmp_path, {"en": [record], "zh": []}, name) for name, record in (("b", BEA), ("a", ADA))}
    monkeypatch.setattr(hub_files, "hf_hub_download", lambda hub_id, file, **pin: files[file])
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()]
    source = {"hub": "some/facts", "files": list(files), "revision": "0" * 40, "sha256": digests, "part": "en"}
    made = make_dataset(source)
    assert (made.subjects, made.refused) == (["Bea", "Ada"], [])
    with pytest.raises(HubFileError, match=f"its sha256 is {digests[0]}, not {digests[1]}; .* or correct sha256"):
        make_dataset(source | {"sha256": digests[::-1]})


@pytest.fixture
def records(tmp_path, monkeypatch):
    """The real files in the places that datasets.yaml names, each where it is or, of the hub, from ROME's records."""
    for name in ("zsre_mend_eval.json", "counterfact-edit.json"):
        (tmp_path / name).symlink_to(real(name))
    for name in ("zsre_mend_train.json", "counterfact-train.json"):
        (tmp_path / name).symlink_to(real("counterfact.json"))
    rows = json.loads(real("counterfact.json").read_text(encoding="utf-8"))
    files = {"train": rows[:400], "test": rows[300:]}
    for name, part in files.items():
        pd.DataFrame(part).to_parquet(tmp_path / f"{name}.parquet")

    def download(hub_id, file, **pin):
        return tmp_path / f"{Path(file).name.partition('-')[0]}.parquet"

    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    return {name: hashlib.sha256((tmp_path / f"{name}.parquet").read_bytes()).hexdigest() for name in files}


@pytest.mark.parametrize("name", sorted(REAL))
def test_data_sets_for_models_from_the_hub_are_made_of_real_records_without_facts(make_dataset, records, name):
    source = copy.deepcopy(REAL[name])
    if "hub" in source:
        source["sha256"], source["training"]["sha256"] = [records["train"]], [records["test"]]
    made = make_dataset(source)
    count = {"zsre": 700, "zsre-full": 700, "counterfact-edit": 2000, "counterfact-full": 400}[name]
    edited_file = [row for row in made.refused if "train" not in Path(row[2]).name or "hub" in source]
    assert len(made.subjects) + len(edited_file) == count
    assert len(edited_file) < 0.04 * count  # ZsRE: those whose `alt` is the true answer
    assert made.facts == []
    assert made.trained_on
    assert not set(made.trained_on) & set(made.subjects)
    if name.startswith("zsre"):
        alt = [row["alt"].strip() for row in json.loads(real("zsre_mend_eval.json").read_text(encoding="utf-8"))]
        assert {target.strip() for target in made.targets} <= set(alt)


def test_every_real_data_set_is_pinned_or_a_file_that_the_readme_names():
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for source in REAL.values():
        for part in (source, source.get("training", source)):
            if "hub" in part:
                assert part["hub"] in readme
                assert len(part["revision"]) == 40
                assert len(part["files"]) == len(part["sha256"])
            else:
                assert f"`{part['file']}`" in readme
