"""What a newcomer installs is what the constraints pin, whichever way they install it."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHON_NAMES = {"pytorch": "torch"}


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _requirements() -> list[Requirement]:
    project = _project()
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]


def _pins(python: str) -> dict[str, str]:
    """Pinned versions by name, as they hold for one version of Python on Linux."""
    marker_values = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.lstrip().startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(marker_values):
                pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return pins


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_within_its_bounds(python):
    pins = _pins(python)
    for requirement in _requirements():
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_conda_environment_has_the_pinned_versions_of_all_dependencies_and_no_others():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    versions = dict(line.split("=") for line in environment["dependencies"] if "=" in line)
    pins = _pins(versions.pop("python"))
    named = {canonicalize_name(PYTHON_NAMES.get(name, name)): version for name, version in versions.items()}
    assert named == {name: pins[name] for name in (canonicalize_name(r.name) for r in _requirements())}


def test_constraints_have_no_hashes_local_builds_or_addresses():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if "==" in line]
    assert len(pins) > 100
    assert not [line for line in pins if "--hash" in line or re.search(r"==\S*\+", line) or "://" in line]


def test_the_version_is_the_same_everywhere():
    version = _project()["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    init = (ROOT / "src" / "coachhook" / "__init__.py").read_text(encoding="utf-8")
    assert citation["version"] == version
    assert f'__version__ = "{version}"' in init


def _fake_python(path: Path, version: tuple[int, int]) -> None:
    """An interpreter that answers only what a version check asks."""
    old = "1" if version < (3, 11) else "0"
    path.write_text(
        f'#!/bin/sh\ncase "$1" in --version) echo Python {version[0]}.{version[1]}.0;; *) exit {old};; esac\n'
    )
    path.chmod(0o755)


@pytest.fixture
def only_these(tmp_path):
    """A folder that is the whole PATH, with the shell tools that make needs."""
    for tool in ("sh", "make", "sed", "touch", "echo"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    return tmp_path


def _find_python(path: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(path / "sh"), str(ROOT / "scripts" / "find_python.sh"), *arguments]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True)


def test_an_older_python_is_refused_in_one_line_that_says_what_to_do(only_these):
    _fake_python(only_these / "python3", (3, 10))
    run = _find_python(only_these)
    assert run.returncode == 1
    assert run.stdout == ""
    assert re.fullmatch(r"coachhook needs Python 3\.11 or newer.*3\.10\.0.*PYTHON=.*\n", run.stderr)


def test_a_newer_python_is_found_beside_an_older_one(only_these):
    _fake_python(only_these / "python3", (3, 10))
    _fake_python(only_these / "python3.12", (3, 12))
    assert _find_python(only_these).stdout == "python3.12\n"


def test_the_python_that_is_asked_for_is_the_only_one_tried(only_these):
    _fake_python(only_these / "python3", (3, 12))
    _fake_python(only_these / "mine", (3, 10))
    assert _find_python(only_these, "mine").returncode == 1


def test_make_stops_before_installing_with_an_older_python(only_these, tmp_path_factory):
    project = tmp_path_factory.mktemp("project")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "scripts/find_python.sh", "config/config.yaml"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    _fake_python(only_these / "python3", (3, 10))
    run = subprocess.run(
        ["make", "reproduce"], cwd=project, env={"PATH": str(only_these)}, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "needs Python 3.11 or newer" in run.stderr
    assert not (project / ".venv").exists()
