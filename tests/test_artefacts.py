"""What every release saved must load, answer and roll back for ever; see saved_artefacts."""

import pytest
import torch
from saved_artefacts import ARTEFACTS, BATCHES, base_model, expected, outputs

import coachhook
from coachhook import Editor
from coachhook.editors import METHODS

SAVED = [(path.parent, path.name) for path in sorted(ARTEFACTS.glob("*/*/")) if (path / "edits.json").is_file()]


@pytest.mark.parametrize(("directory", "method"), SAVED, ids=[f"{d.name}-{m}" for d, m in SAVED])
def test_a_releases_edits_still_answer_alike(directory, method):
    editor = Editor.from_pretrained(directory / method, base_model())
    answers = expected(directory, method)
    assert not torch.allclose(answers[2], answers[0], atol=1e-2)  # there is something to lose
    assert [step.requests for step in editor.journal] == [tuple(batch) for batch in BATCHES]
    assert all(step.time for step in editor.journal)
    assert all("reliability" in step.metrics["easyedit"] for step in editor.journal)
    for step in (2, 1, 0):
        editor.rollback(step)
        # Machines sum in different orders; the weights' bits are the same everywhere.
        torch.testing.assert_close(outputs(editor.model, editor.tokenizer), answers[step], rtol=1e-4, atol=1e-4)


def test_this_version_has_its_artefacts():
    here = ARTEFACTS / coachhook.__version__
    assert {method for directory, method in SAVED if directory == here} >= set(METHODS)
    size = sum(path.stat().st_size for path in here.rglob("*") if path.is_file())
    assert size < 300_000
