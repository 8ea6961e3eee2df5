"""A tiny model on disk with its covariance and request files, and the command that edits it."""

from dataclasses import dataclass
from pathlib import Path

from conftest import TEXT, build_model
from typer.testing import CliRunner

from coachhook.cli import app
from coachhook.covariance_file import write_covariance
from coachhook.requests import write_requests

SETTINGS = ("covariance_weight=2", "context_templates=1", "context_length=3", "target_steps=3", "target_lr=0.5")
SET = [word for setting in SETTINGS for word in ("--set", setting)]


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args):
    """What a command that works prints on standard output."""
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(words, *args):
    """One line on standard error that says `words`."""
    result = call(*args)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert result.stderr.strip().endswith(line)
    assert result.stdout == ""


@dataclass
class Folder:
    """Paths: the model, its covariance, three weeks of requests (two each), a text."""

    path: Path

    def __truediv__(self, name):
        return self.path / name

    @property
    def model(self):
        return self.path / "model"

    @property
    def texts(self):
        return self.path / "text.txt"

    @property
    def covariance(self):
        return self.path / "covariance.safetensors"

    def week(self, number):
        return self.path / f"week-{number}.json"

    def edit(self, start, week, out, *more):
        """Arguments that edit with MEMIT, on a base model or on a directory of edits."""
        base = ("--method", "memit", *SET) if start == self.model else ()
        files = ("--requests", self.week(week), "--covariance", self.covariance)
        return ("edit", start, *files, *base, *(() if out is None else ("--out", out)), *more)


def make_folder(path, tokenizer, covariances, requests):
    folder = Folder(path)
    build_model("gpt2").save_pretrained(folder.model)
    tokenizer.save_pretrained(folder.model)
    write_covariance(covariances["gpt2"], folder.covariance)
    for week in (1, 2, 3):
        write_requests(requests[2 * week - 2 : 2 * week], folder.week(week))
    write_requests(requests, folder / "all.json")
    folder.texts.write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return folder


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
