"""Every block of code in the documentation is run; one of a kind that nothing here runs is an error."""

import ast
import functools
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from ability_tasks import CHOICE
from conftest import TEXT, build_model
from lm_eval.tasks import TaskManager
from markdown_it import MarkdownIt
from snakemake.cli import get_argument_parser
from transformers import FalconConfig, FalconForCausalLM, GPT2Config, GPT2LMHeadModel
from typer.main import get_command
from typer.testing import CliRunner
from workflow.conftest import copy_project

import coachhook
from coachhook import read_requests
from coachhook.cli import app
from coachhook.provenance import write_provenance
from coachhook.requests import write_requests
from coachhook.study import check_config, load_study

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "config/*.md", "data/*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)
MODULES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "src").rglob("*.py")) if "```" in path.read_text()]
DIRECTIVES = {"{eval-rst}", "{include}", "{toctree}"}  # of the site, with no code of their own in them
# Commands that a test of their own runs, as they need more than a folder: that test, and how it says them.
ELSEWHERE = {
    "dvc pull --allow-missing": ("tests/workflow/test_tracked_streams.py", '"dvc", "pull", "--allow-missing"'),
    "python -m coachhook.lm_eval run --model coachhook --model_args path=my-edits --tasks boolq,rte --batch_size 8": (
        "tests/test_lm_eval.py",
        'run_module("coachhook.lm_eval"',
    ),
}
WORKED_EXAMPLE = "CONTRIBUTING.md"  # its four blocks are files; tests/test_contributing.py puts them in place


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """The code of a page; indented code is commands, as everywhere in these pages."""
    found = []
    for token in MarkdownIt().parse(text):
        if token.type == "fence":
            found.append(Block(token.info.strip().partition(" ")[0], token.content, token.map[0] + 1))
        elif token.type == "code_block":
            found.append(Block("console", token.content, token.map[0]))
    return found


def docstring_blocks(source: str) -> list[Block]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return [block for docstring in docstrings for block in blocks(docstring)]


@dataclass
class Page:
    """One page's blocks share a namespace, a folder, and a copy of the project once they ask for one."""

    name: str
    folder: Path
    namespace: dict
    studies: set[str] = field(default_factory=set)
    _project = None

    def run(self, block: Block) -> None:
        if block.kind in DIRECTIVES:
            assert not re.search(r"code|literal|doctest|::$", block.text, re.MULTILINE), "write code as a fenced block"
            return
        kinds = {"python": self._python, "console": self._console, "json": self._json, "yaml": self._yaml}
        if block.kind not in kinds:
            raise LookupError(f"{self.name}:{block.line}: nothing runs a block of the kind {block.kind!r}")
        kinds[block.kind](block)

    def _python(self, block: Block) -> None:
        before = set(self.namespace)
        code = compile("\n" * block.line + block.text, self.name, "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # a file that a short program leaves to its end
            exec(code, self.namespace)
            for name in sorted(set(self.namespace) - before):
                if name.startswith("test_"):
                    self.namespace[name]()

    def _console(self, block: Block) -> None:
        runners = {"coachhook": self._coachhook, "make": self._make, "snakemake": self._snakemake, "pip": self._pip}
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or shlex.join(words) in ELSEWHERE:
                continue
            if words[0] not in runners:
                raise LookupError(f"{self.name}:{block.line}: nothing runs the command {words[0]!r}")
            runners[words[0]](words)

    def _json(self, block: Block) -> None:
        path = self.folder / "block.json"
        path.write_text(block.text, encoding="utf-8")
        assert read_requests(path)

    def _yaml(self, block: Block) -> None:
        """A file of the study, or entries of one, named by the comment in the first line."""
        named = re.match(r"# (config/[\w/-]+\.yaml)\n", block.text)
        assert named, "the first line is to be a comment that names the file, such as # config/models.yaml"
        path = self.project.root / named[1]
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        for key, value in yaml.safe_load(block.text).items():
            content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        study = path.stem if path.parent.name == "studies" else "smoke"
        self.studies.add(study)
        load_study(study, self.project.root / "config", self.project.root / "workflow" / "schemas")

    @property
    def project(self):
        if self._project is None:
            self._project = copy_project(self.folder / "project")
        return self._project

    def _coachhook(self, words: list[str]) -> None:
        short = ["--trial-seconds", "0.1"] if words[1] == "plan" else []
        result = CliRunner().invoke(app, [*words[1:], *short])
        # 3: a dry run that found something to fall, as it may on a model of random weights.
        assert result.exit_code == 0 or (result.exit_code == 3 and "--dry-run" in words), result.output

    def _make(self, words: list[str]) -> None:
        _run([*words, "--dry-run"], ROOT)

    def _snakemake(self, words: list[str]) -> None:
        """A dry run of what the page made up; of the studies that are there, which tests/workflow runs, the plan."""
        named = dict(entry.split("=") for entry in get_argument_parser().parse_args(words[1:]).config or ())
        if named.get("study") in self.studies:
            self.project.run("snakemake", "-n", *words[1:])
            return
        settings = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8")) | named
        settings["tiny"] = yaml.safe_load(str(settings["tiny"]))
        check_config(settings, ROOT / "workflow" / "schemas")
        load_study(settings["study"], ROOT / "config", ROOT / "workflow" / "schemas", settings["tiny"])

    def _pip(self, words: list[str]) -> None:
        shutil.copytree(ROOT / "src", self.folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.folder)
        offline = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation"]
        _run([sys.executable, "-m", *words, *offline], self.folder)


def _run(command: list[str], folder: Path) -> None:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, tokenizer, requests):
    """The files that the pages take for granted: models, a text by its two names, weeks of requests."""
    folder = tmp_path_factory.mktemp("prepared")
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_head": 2, "n_inner": 48, "n_positions": 64, "vocab_size": 400}
    for name, depth in {"my-model": 8, "gpt2-xl": 20}.items():
        config = GPT2Config(n_layer=depth, **sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.2)
        GPT2LMHeadModel(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = " ".join(TEXT).split()
    order = torch.randint(len(words), (60, 12), generator=torch.Generator().manual_seed(0)).tolist()
    lines = [" ".join(words[place] for place in line) for line in order]
    for name in ("text.txt", "articles.txt"):
        (folder / name).write_text("\n".join([*TEXT, *lines]) + "\n", encoding="utf-8")
    for week in (1, 2, 3):
        write_requests(requests[2 * week - 2 : 2 * week], folder / f"week-{week}.json")
    return folder


@pytest.fixture
def page(request, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    name = request.node.callspec.params["name"]
    return Page(name, tmp_path, request.getfixturevalue(GIVEN[name]) if name in GIVEN else {})


@pytest.fixture
def unknown_family(tokenizer) -> dict:
    """What the example of a declaration in docs/models.md is about."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "max_position_embeddings": 64}
    model = FalconForCausalLM(FalconConfig(vocab_size=400, bos_token_id=0, eos_token_id=0, **sizes))
    covariance = {layer: torch.eye(128) for layer in (1, 2)}
    return {"coachhook": coachhook, "model": model, "tokenizer": tokenizer, "covariance": covariance}


@pytest.fixture
def model_and_requests(tokenizer, covariances, requests) -> dict:
    """What the example of the class `Editor` is about."""
    given = {"tokenizer": tokenizer, "covariance": covariances["gpt2"].matrices, "requests": requests}
    return {"Editor": coachhook.Editor, "model": build_model("gpt2"), **given}


@pytest.fixture
def published_files(monkeypatch) -> dict:
    """Texts of the hub, and a folder of second moments as ROME publishes them."""
    texts = [{"text": text} for text in Path("text.txt").read_text(encoding="utf-8").splitlines()]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: texts)
    compute = ["covariance", "gpt2-xl", "--texts", "text.txt", "--layers", "13,14,15,16,17", "--out", "c.safetensors"]
    result = CliRunner().invoke(app, [*compute, "--export", "data/stats/gpt2-xl/wikipedia_stats"])
    assert result.exit_code == 0, result.output
    return {}


@pytest.fixture
def tasks_of_lm_eval(tasks, tmp_path, monkeypatch) -> dict:
    """A task of ours by the name of one that lm-eval would fetch."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "boolq.yaml").write_text(CHOICE.format(folder=tasks).replace("cities", "boolq", 1), encoding="utf-8")
    ours = functools.partial(TaskManager, include_path=str(folder), include_defaults=False)
    monkeypatch.setattr("lm_eval.evaluator.TaskManager", ours)
    return {}


@pytest.fixture
def results_of_a_study() -> dict:
    stream = Path("results", "streams", "seed~0")
    stream.mkdir(parents=True)
    (stream / "metrics.jsonl").write_text("{}\n")
    options = {"settings": {"seed": 0}, "command": "snakemake --cores all"}
    write_provenance(stream / "provenance.json", outputs=[stream / "metrics.jsonl"], **options)
    return {}


# Pages whose code is about something said before it, or fetched, and the fixture that provides it.
GIVEN = {
    "docs/command_line.md": "tasks_of_lm_eval",
    "docs/covariance.md": "published_files",
    "docs/models.md": "unknown_family",
    "docs/provenance.md": "results_of_a_study",
    "src/coachhook/editor.py": "model_and_requests",
}


@pytest.mark.parametrize("name", [name for name in PAGES if name != WORKED_EXAMPLE])
def test_the_code_of_a_page_runs(name, page):
    for block in blocks((ROOT / name).read_text(encoding="utf-8")):
        page.run(block)


@pytest.mark.parametrize("name", ["docs/commands.md"])
def test_the_examples_of_the_commands_run(name, page, results_of_a_study):
    """What the help of each command shows, which is what the page of all commands shows."""
    group = get_command(app)
    ran = 0
    for command in (group, *group.commands.values()):
        for example in re.findall(
            r"(?:^  coachhook .*\n(?:^      .*\n)*)+", inspect.getdoc(command.callback) + "\n", re.M
        ):
            page.run(Block("console", textwrap.dedent(example), 0))
            ran += 1
    assert ran > len(group.commands)


def test_the_quick_start_is_a_program_of_ten_lines(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    first = next(block for block in blocks((ROOT / "docs/guide/quickstart.md").read_text()) if block.kind == "python")
    assert len([line for line in first.text.splitlines() if line]) == 10
    run = subprocess.run([sys.executable, "-c", first.text], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, "Exception" in run.stderr) == (0, False), run.stderr
    assert "reliability=" in run.stdout


@pytest.mark.parametrize("name", MODULES)
def test_the_code_in_docstrings_runs(name, page):
    found = docstring_blocks((ROOT / name).read_text(encoding="utf-8"))
    assert found
    for block in found:
        page.run(block)


def test_what_is_run_elsewhere_is_run_there():
    for test, words in ELSEWHERE.values():
        assert words in (ROOT / test).read_text(encoding="utf-8")
    kinds = [block.kind for block in blocks((ROOT / WORKED_EXAMPLE).read_text(encoding="utf-8"))]
    assert kinds == ["python", "python", "yaml", "python"]


@pytest.mark.parametrize("name", ["a.md"])
@pytest.mark.parametrize("code", ["```ruby\nputs 1\n```", "```\n1\n```", "    ls", "- ~~~{code-block} c\n  ~~~"])
def test_code_that_nothing_runs_is_an_error(name, code, page):
    (block,) = blocks(code)
    with pytest.raises(LookupError, match=r"a\.md:\d: nothing runs"):
        page.run(block)


@pytest.mark.parametrize("name", ["a.md"])
@pytest.mark.parametrize(
    "code",
    [
        "```python\n1 / 0\n```",
        "```python\ndef test_it():\n    assert 0\n```",
        "```console\ncoachhook no-such-command\n```",
        "```console\nmake no-such-target\n```",
        "    snakemake --cores all --config study=no-such-study",
        '```json\n[{"subject": "Ada"}]\n```',
        "```yaml\n# config/datasets.yaml\nno_such_key: 1\n```",
        "```yaml\nno_file: named\n```",
        "```{eval-rst}\n.. code-block:: python\n```",
    ],
)
def test_code_that_does_not_work_is_an_error(name, code, page):
    (block,) = blocks(code)
    with pytest.raises((AssertionError, ZeroDivisionError, coachhook.errors.CoachHookError)):
        page.run(block)
