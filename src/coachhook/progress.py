"""How far long work is, for whoever wants to show it; the library by itself shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Show = Callable[[str, int, int], None]
"""Called with what is being done, how many parts of it are done, and how many there are."""

_show: ContextVar[Show | None] = ContextVar("show", default=None)


@contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """Inside, `show` hears how far each piece of work is: targets, questions, texts, tokens of a covariance."""
    token = _show.set(show)
    try:
        yield
    finally:
        _show.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Say that `done` of `total` parts of a piece of work are done; nothing is said of work in a single part."""
    show = _show.get()
    if show is not None and total > 1:
        show(what, done, total)
