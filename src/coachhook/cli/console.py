"""How results look: tables and numbers on standard output, progress on standard error."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from coachhook.progress import shown_by

logger = logging.getLogger(__name__)
_WIDTH = 100  # of tables in a file or a pipe
_ERRORS = Console(stderr=True, highlight=False)  # one for bar and log, or they would write into each other


def console() -> Console:
    """Standard output."""
    plain = {"highlight": False, "markup": False, "emoji": False}  # what is printed is text of the user's
    out = Console(**plain)
    return out if out.is_terminal else Console(**plain, width=_WIDTH)


def log_lines() -> None:
    """Send the library's log to standard error, line by line, above a progress bar where there is one."""
    plain = {"highlighter": NullHighlighter(), "show_time": False, "show_level": False, "show_path": False}
    handler = RichHandler(console=_ERRORS, **plain) if sys.stderr.isatty() else _WholeLines()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("coachhook").setLevel(logging.INFO)


class _WholeLines(logging.Handler):
    """Whole lines, whatever the width."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def table(columns: Iterable[str], rows: Iterable[Iterable[str | Text]], *, right: Iterable[str] = ()) -> Table:
    """A table without lines; columns named in `right` are aligned there. Without names there is no head."""
    columns, right = tuple(columns), set(right)
    made = Table(box=None, show_header=any(columns), header_style="dim", padding=(0, 3, 0, 0), pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def counted(number: int, what: str) -> str:
    """A number and what it counts: 1 step, 2 steps."""
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def change(before: float | None, after: float | None) -> Text:
    """A score before and after, in percent; once where it is the same."""
    old, new = percent(before), percent(after)
    if old == new:
        return Text(old, style="dim")
    return Text(f"{old} → {new}", style="green" if after > before else "red")


@contextmanager
def progress(what: str, total: int, every: float = 10) -> Iterator[Callable[[], None]]:
    """A function to call after each of `total` parts: a bar on a terminal, lines `every` so many seconds in a log.

    Below the bar, how far the library is with the part at hand.
    """
    if not sys.stderr.isatty():
        lines, done = _Lines(every), itertools.count(1)
        with working():
            yield lambda: lines.show(what, next(done), total)
        return
    with _bars() as bars:
        task = bars.add_task(what, total=total)
        with _part_of(bars):
            yield lambda: bars.advance(task)


@contextmanager
def working(every: float = 10) -> Iterator[None]:
    """Inside, a bar says how far the library is with what it is at; in a log, lines `every` so many seconds."""
    if not sys.stderr.isatty():
        with shown_by(_Lines(every).show):
            yield
        return
    with _bars() as bars, _part_of(bars):
        yield


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=_ERRORS, transient=True)


@contextmanager
def _part_of(bars: Progress) -> Iterator[None]:
    """What the library says, as one bar more that begins anew with each piece of work."""
    task = bars.add_task("", total=None, visible=False)
    current = ""

    def show(what: str, done: int, total: int) -> None:
        nonlocal current
        if what != current:
            current = what
            bars.reset(task, description=what, visible=True)
        bars.update(task, completed=done, total=total)

    with shown_by(show):
        yield


class _Lines:
    """Lines in a log, `every` so many seconds at most."""

    def __init__(self, every: float):
        self._every, self._start = every, time.monotonic()
        self._told = self._start

    def show(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= self._every:
            self._told = now
            logger.info("%s: %d of %d, %.0f s", what, done, total, now - self._start)
