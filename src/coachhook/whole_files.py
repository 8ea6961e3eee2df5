"""Files as a whole: written or not at all, whatever kills the process, and told apart by their content."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from safetensors import SafetensorError

logger = logging.getLogger(__name__)
_HOST = re.sub(r"\W", "-", platform.node())
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of a file system that cannot sync folders


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path` to write under; then the file is synced and renamed to `path`.

    Where writing fails the temporary file is removed and an earlier file stays as it was. What a killed process left
    of this file is removed too.

    Raises:
        OSError: whatever wrote it, it names `path`: a full disk, a folder that may not be written.
    """
    path, temporary = Path(path), temporary_path(path)
    try:
        with _named_after(path, temporary):
            _clear_left(path)
            with open(temporary, "wb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield temporary
            os.chmod(temporary, mode)  # safetensors writes for the owner alone
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def whole_folder(folder: str | os.PathLike, last: str | None = None) -> Iterator[Path]:
    """A temporary folder to write files in; then they are synced and moved into `folder` one by one, `last` the last.

    Raises:
        OSError: as of `whole_file`; it names `folder`, whose files then stay as they were.
    """
    folder, temporary = Path(folder), temporary_path(folder)
    try:
        with _named_after(folder, temporary):
            folder.mkdir(parents=True, exist_ok=True)
            _clear_left(folder)
            temporary.mkdir()
            yield temporary
            for path in temporary.iterdir():
                path.chmod(temporary.stat().st_mode & 0o666)  # safetensors writes for the owner alone
                sync(path)
            for path in sorted(temporary.iterdir(), key=lambda path: (path.name == last, path.name)):
                os.replace(path, folder / path.name)
            sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file under a temporary name, sync it, and rename it."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_checked(path: str | os.PathLike, content: bytes) -> None:
    """`write_bytes`, and first, beside it, its digest, by which `read_checked` and `sha256sum --check` know it."""
    write_text(digest_path(path), f"{hashlib.sha256(content).hexdigest()}  {Path(path).name}\n")
    write_bytes(path, content)


def read_checked(path: str | os.PathLike) -> bytes | None:
    """What `write_checked` wrote; None where it was never written to the end, or is no longer what was written."""
    try:
        content = Path(path).read_bytes()
        known = digest_path(path).read_bytes().split()[:1]
    except FileNotFoundError:
        return None
    if known != [hashlib.sha256(content).hexdigest().encode()]:
        logger.warning("%s: damaged, as its digest tells; it is made again", path)
        return None
    return content


def digest_path(path: str | os.PathLike) -> Path:
    """Where `write_checked` puts a file's digest."""
    return Path(f"{os.fspath(path)}.sha256")


def file_digest(path: str | os.PathLike) -> bytes:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def sync(path: str | os.PathLike) -> None:
    """Have a file's bytes, or a folder's names, on the disk before going on."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(opened)


def check_writable(folder: str | os.PathLike, least_bytes: int = 10**7) -> None:
    """Refuse a folder, or where it has still to be made the one above it, that takes no files.

    Raises:
        OSError: of a read-only file system, of missing rights, or of a disk with less room than `least_bytes`.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disk, number = os.statvfs(there), None
    if not os.access(there, os.W_OK | os.X_OK):
        number = errno.EROFS if disk.f_flag & os.ST_RDONLY else errno.EACCES
    elif disk.f_bavail * disk.f_frsize < least_bytes:
        number = errno.ENOSPC
    if number is not None:
        raise OSError(number, os.strerror(number), str(folder))


@contextmanager
def alone(lock: str | os.PathLike) -> Iterator[None]:
    """Wait until no other process is inside with the same `lock`, a file made for it.

    The kernel lets go of it however the process ends, so nothing is ever to be removed by hand.
    """
    lock = Path(lock)
    lock.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        with open(lock, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    logger.info("%s: another process is at this work; waiting for it to end", lock)
                told = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_file(lock, file.fileno()):  # who had it has removed it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def temporary_path(path: str | os.PathLike, process: int | None = None) -> Path:
    """The name under which a process of this machine (this one where None) writes a file."""
    path = Path(path)
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid() if process is None else process}.tmp")


def _is_file(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(opened))
    except FileNotFoundError:
        return False


@contextmanager
def _named_after(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of writing name the file that was to be written, whoever raises them."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not _is_of(error.filename, temporary):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _is_of(named: object, temporary: Path) -> bool:
    """Whether an error names no file, the temporary one, or one inside it."""
    return named is None or temporary in (Path(os.fsdecode(named)), *Path(os.fsdecode(named)).parents)


def _clear_left(path: Path) -> None:
    """Remove what processes of this machine that were killed left of a file."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{_HOST}-*.tmp"):
        process = left.name.rpartition("-")[2].removesuffix(".tmp")
        if not process.isdigit() or (int(process) != os.getpid() and psutil.pid_exists(int(process))):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
