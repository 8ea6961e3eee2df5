"""Where a running job says what it does: its log file and, for who is watching, standard error."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import TracebackType

logger = logging.getLogger("coachhook")


def log_to(path: str | os.PathLike[str], name: str) -> None:
    """Send log lines, warnings and whatever ends the process to a file and to standard error.

    name: what is running, at the start of each line, as several jobs share one standard error. An error of this
    library (its message is one line that says what to do) ends the process without a traceback.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handlers = [logging.FileHandler(path, mode="w", encoding="utf-8"), logging.StreamHandler(sys.stderr)]
    logging.basicConfig(
        format=f"%(asctime)s {name.replace('%', '%%')}: %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        level=logging.WARNING,
        force=True,
    )
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_error


def _log_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    own = kind.__module__.split(".")[0] == "coachhook"
    logger.error("%s", error, exc_info=None if own else (kind, error, traceback))
