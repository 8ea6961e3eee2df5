"""The one base of every error a user can cause: its text is one line that names the offender and what to do."""

from __future__ import annotations

import errno
import os

_ROOM, _RIGHT = "make room on its disk", "give this user the right to it"
_TO_DO = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "make it writable, or work in another folder",
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
    errno.ENOENT: "put it back",
    errno.ENOTDIR: "put its folder back",
    errno.EISDIR: "move that folder away",
    errno.EIO: "see to its disk",
    errno.ESTALE: "see to its network disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOMEM: "free memory",
}


class CoachHookError(Exception):
    """Commands print its text and no traceback."""


def one_line(error: BaseException) -> str | None:
    """What to tell a user who can mend the cause of an error, with what to do; None where it is a fault of the code."""
    if isinstance(error, CoachHookError):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in _TO_DO:
        return None
    where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
    return f"{where}{os.strerror(error.errno)}; {_TO_DO[error.errno]}, then start again with the same command"
