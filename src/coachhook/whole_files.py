"""Files as a whole: written or not at all, whatever kills the process, and told apart by their content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file under a temporary name, sync it, and rename it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def file_digest(path: str | os.PathLike) -> bytes:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
