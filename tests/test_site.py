"""The documentation site: built by the command of `make docs`, whole, and complete without a network."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from typer.main import get_command

import coachhook
from coachhook.cli import app
from coachhook.hyperparameters import hyperparameters

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"^\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
UNREACHABLE = {"http_proxy": "http://localhost:9", "https_proxy": "http://localhost:9"}
FETCHED = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src", "object": "data"}


@dataclass
class Parsed(HTMLParser):
    """What of a page matters here."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if values.get(FETCHED.get(tag)):
            self.fetched.append(values[FETCHED[tag]])
        self.fetched += re.findall(r"url\(['\"]?(.*?)['\"]?\)", values.get("style") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    tools = Path(sys.executable).parent
    options = [f"BIN={tools}", f"SITE={folder}", f"DOCTREES={tmp_path_factory.mktemp('doctrees')}"]
    recipe = subprocess.run(
        ["make", "--dry-run", "docs", *options], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (command,) = [line for line in recipe.splitlines() if "sphinx-build" in line]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} | UNREACHABLE
    run = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "-W" in command.split()  # a warning is an error
    assert not run.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    parsed = {}
    for path in sorted(site.rglob("*.html")):
        page = parsed[path] = Parsed()
        page.feed(path.read_text(encoding="utf-8"))
    assert len(parsed) > 10
    return parsed


def test_every_link_inside_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in (*page.links, *page.fetched):
            target, fragment = urldefrag(link)
            if OUTSIDE.match(link) or re.match("(mailto|data):", link):
                continue
            file = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            known = pages[file].anchors if file in pages else set()
            if not file.is_file() or (fragment and file in pages and unquote(fragment) not in known):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_nothing_is_fetched_from_elsewhere(site, pages):
    fetched = [(path.name, asset) for path, page in pages.items() for asset in page.fetched]
    in_sheets = r"(?:url\(|@import)\s*['\"]?([^'\")]*)"
    in_scripts = r"(?:\.src\s*=|import\(|importScripts\(|fetch\()\s*['\"`](.*?)['\"`]"
    for suffix, loads in (("css", in_sheets), ("svg", in_sheets), ("js", in_scripts)):
        for file in site.rglob(f"*.{suffix}"):
            fetched += [(file.name, asset) for asset in re.findall(loads, file.read_text(encoding="utf-8"))]
    assert len(fetched) > 100
    assert not [(name, asset) for name, asset in fetched if OUTSIDE.match(asset)]


def test_the_reference_has_every_public_name_and_every_command(site, pages):
    documented = pages[site / "api.html"].anchors
    assert {f"coachhook.{name}" for name in coachhook.__all__ if name != "solver"} <= documented
    commands = pages[site / "commands.html"].anchors
    assert {f"coachhook-{name}" for name in get_command(app).commands} <= commands
    listed = (site / "hyperparameters.html").read_text(encoding="utf-8")
    assert set(coachhook.methods()) <= pages[site / "hyperparameters.html"].anchors
    assert len(re.findall("<td>", listed)) == 4 * sum(len(hyperparameters(name)) for name in coachhook.methods())


def test_equations_are_drawn_without_scripts(site, pages):
    path = site / "guide" / "method.html"
    text = path.read_text(encoding="utf-8")
    assert text.count("<math") > 20
    assert "\\lambda" not in text
    assert not [asset for asset in pages[path].fetched if re.search("math|katex", asset, re.IGNORECASE)]


def test_every_page_of_ours_is_reached_from_the_first(site, pages):
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        page = waiting.pop()
        if page in reached or page not in pages:
            continue
        reached.add(page)
        inside = [link for link in pages[page].links if not OUTSIDE.match(link)]
        waiting += [(page.parent / urldefrag(link)[0]).resolve() for link in inside]
    ours = {site / path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert ours <= reached
