"""A switch that several threads may hold off at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_counting = threading.Lock()  # one for all, as a lock cannot be copied and models with hooks are


class Switch:
    """On, unless someone is inside `off()`: who leaves does not switch it on for others. A copy made inside stays off.

    Arguments:
        turned: told each time whether it is on now.
    """

    def __init__(self, turned: Callable[[bool], None] | None = None):
        self._inside, self._turned = 0, turned

    @property
    def on(self) -> bool:
        return self._inside == 0

    @contextmanager
    def off(self) -> Iterator[None]:
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with _counting:
            before, self._inside = self.on, self._inside + more
            if self._turned is not None and self.on != before:
                self._turned(self.on)

    def __repr__(self) -> str:
        return f"Switch({'on' if self.on else 'off'})"
