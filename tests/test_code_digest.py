import sys

import pytest

from coachhook.code_digest import code_digest, code_label, label_now, method_digest, method_names, training_digest
from coachhook.editors import METHODS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """stream → hooks and editors.one; base_model stands alone."""
    files = {
        "__init__": "raise RuntimeError('never imported')",
        "hooks": "def swap(x):\n    return x + 1\n",
        "stream": "import json\nfrom toy import hooks\nfrom toy.editors.one import edit\n",
        "base_model": "LAYERS = 6\n",
        "editors/__init__": "from . import one\n",
        "editors/one": "from ..hooks import swap\nfrom .two import edit\n",
        "editors/two": "def edit():\n    return 2\n",
    }
    for name, text in files.items():
        path = tmp_path / "toy" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("toy", None)
    return tmp_path / "toy"


def _digests():
    return {name: code_digest(name, package="toy") for name in ("stream", "base_model", "editors")}


def test_an_edit_changes_the_digest_of_what_runs_it_and_of_nothing_else(package):
    before = _digests()
    (package / "hooks.py").write_text("def swap(x):\n    return x + 2\n")
    after = _digests()
    assert after["stream"] != before["stream"]
    assert after["editors"] != before["editors"]
    assert after["base_model"] == before["base_model"]


def test_relative_imports_are_followed(package):
    before = _digests()
    (package / "editors" / "two.py").write_text("def edit():\n    return 3\n")
    after = _digests()
    assert after["stream"] != before["stream"]
    assert after["editors"] != before["editors"]


def test_comments_docstrings_and_layout_change_nothing(package):
    before = _digests()
    (package / "hooks.py").write_text('"""Hooks."""\n\n\ndef swap(x):\n    """Swap."""\n    return (x + 1)  # why\n')
    assert _digests() == before


def test_an_unknown_module_is_an_error(package):
    with pytest.raises(ModuleNotFoundError, match=r"toy\.hoks"):
        code_digest("hoks", package="toy")


def test_a_module_can_be_left_out(package):
    before = code_digest("stream", package="toy", without=("editors.one", "editors"))
    (package / "editors" / "two.py").write_text("def edit():\n    return 3\n")
    assert code_digest("stream", package="toy", without=("editors.one", "editors")) == before


def test_of_the_real_package_streams_run_the_hooks_and_the_base_model_does_not():
    with_hooks = code_digest("stream") != code_digest("stream", without=("hooks",))
    assert with_hooks or method_digest("coachhook") != code_digest("stream")
    assert code_digest("base_model") == code_digest("base_model", without=("hooks", "stream", "editors"))
    assert code_digest("editors.coachhook") != code_digest("editors.coachhook", without=("hooks",))


def test_every_method_has_a_digest_and_variants_of_one_module_differ():
    assert method_names() == list(METHODS)
    digests = {name: method_digest(name) for name in METHODS}
    assert len(set(digests.values())) == len(METHODS)
    with pytest.raises(KeyError):
        method_digest("nothing")


def test_training_an_editor_depends_on_its_method_and_on_no_stream():
    digests = {name: training_digest(name) for name in ("mend", "serac")}
    assert len(set(digests.values())) == 2
    assert all(digest != method_digest(name) for name, digest in digests.items())
    with pytest.raises(KeyError):
        training_digest("nothing")


def test_a_label_names_code_and_is_found_again():
    for code in (("modules", "world", "facts"), ("method", "memit"), ("training", "mend")):
        label = code_label(*code)
        assert label_now(label) == label
        assert label_now(f"{label[:-1]}x") == label
    for gone in ("modules nothing: 0", "method nothing: 0", "model mini: 0", "method: 0", ""):
        assert label_now(gone) is None
