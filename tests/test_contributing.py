"""The worked example of CONTRIBUTING.md, done as it says: in a copy, with nothing else touched."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with the example's four parts put where the text says."""
    root = tmp_path_factory.mktemp("project")
    for name in ("src", "tests", "config", "workflow"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    module, line, configuration, test = re.findall(r"^```(?:python|yaml)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    paths = re.findall(r"^\*\*\d\. .*?\*\*, `(.*?)`", text, re.MULTILINE)
    for path, content in zip(paths, (module, None, configuration, test), strict=True):
        if content is not None:
            assert not (root / path).exists()
            (root / path).write_text(content, encoding="utf-8")
    registry = root / paths[1]
    before = registry.read_text(encoding="utf-8")
    registry.write_text(before.replace('    "memit": ', line + '    "memit": ', 1), encoding="utf-8")
    assert registry.read_text(encoding="utf-8") != before
    return root


def run(root, *arguments):
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    return subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)


def test_the_example_passes_its_own_test_and_those_of_all_methods(copy):
    tests = ("tests/test_encore.py", "tests/test_all_methods.py")
    result = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "encore", *tests)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 10


def test_a_study_may_name_the_example(copy):
    study = copy / "config" / "studies" / "smoke.yaml"
    study.write_text(study.read_text(encoding="utf-8").replace("memit", "encore"), encoding="utf-8")
    program = (
        "from pathlib import Path; from coachhook.study import load_study\n"
        "streams = load_study('smoke', Path('config'), Path('workflow/schemas')).streams.values()\n"
        "print(*{stream.method for stream in streams})"
    )
    result = run(copy, "-c", program)
    assert "encore" in result.stdout.split(), result.stderr


def test_the_example_is_formatted_as_the_project_is(copy):
    files = ("src/coachhook/editors/encore.py", "tests/test_encore.py")
    ruff = str(Path(sys.executable).with_name("ruff"))
    for command in (("check",), ("format", "--check")):
        result = subprocess.run([ruff, *command, *files], cwd=copy, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout
