"""Where a running job says what it does: its log file and, for who is watching, standard error."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import ExitStack
from types import TracebackType

from coachhook.errors import one_line
from coachhook.whole_files import alone

logger = logging.getLogger("coachhook")
_held = ExitStack()
atexit.register(_held.close)


def log_to(path: str | os.PathLike[str], name: str) -> None:
    """Send log lines, warnings and whatever ends the process to a file and to standard error.

    A job outlives the Snakemake that was killed above it: the next one waits here until it has ended, so no two
    processes are at the same job.

    name: what is running, at the start of each line, as several jobs share one standard error. An error that the user
    can mend (`one_line`) ends the process without a traceback.
    """
    sys.excepthook = _log_error
    logging.basicConfig(
        format=f"%(asctime)s {name.replace('%', '%%')}: %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
        force=True,
    )
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    _held.enter_context(alone(f"{os.fspath(path)}.lock"))
    file = _LogFile(path, mode="w", encoding="utf-8")
    file.setFormatter(logging.getLogger().handlers[0].formatter)
    logging.getLogger().addHandler(file)


class _LogFile(logging.FileHandler):
    """A log file that may run out of disk: the job goes on, and its lines on standard error."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logging.getLogger().removeHandler(self)
        logger.warning("%s: %s; no more lines go to this file", self.baseFilename, error.strerror)


def _log_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    told = one_line(error)
    logger.error("%s", told or error, exc_info=None if told else (kind, error, traceback))
