"""Which GPUs a process sees where several processes share a machine: each takes free ones, until it ends."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path

logger = logging.getLogger("coachhook")

VISIBLE = "CUDA_VISIBLE_DEVICES"


def take_gpus(count: int, folder: str | os.PathLike[str] | None = None) -> None:
    """Make `count` GPUs that no other process has taken the only ones that this process and its children see.

    To be called before anything asks CUDA for devices, as CUDA reads once which are visible. Waits while fewer are
    free; takes all there are where `count` is more. A list of visible GPUs that is no longer than `count` is kept as it
    is: a batch system has dealt them out. With 0 no GPU is seen.

    Arguments:
        folder: where the processes of this machine hold a lock per GPU; default: one of this user's in the system's
            folder for temporary files. The kernel releases a lock when its process ends, in whatever way.
    """
    dealt = os.environ.get(VISIBLE)
    if count == 0:
        os.environ[VISIBLE] = ""
        return
    names = _all_gpus() if dealt is None else list(dict.fromkeys(filter(None, map(str.strip, dealt.split(",")))))
    if names and (dealt is None or len(names) > count):
        os.environ[VISIBLE] = ",".join(_lock(names, min(count, len(names)), _lock_folder(folder)))
    logger.info("GPUs asked for: %d; this job's: %s", count, os.environ[VISIBLE] if names else "none")
    if not _cuda_works():
        logger.warning("torch can use no GPU here: running on the CPU")


def _cuda_works() -> bool:
    import torch  # takes seconds, and who asks for no GPU does without

    return torch.cuda.is_available()


def _all_gpus() -> list[str]:
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _lock_folder(folder: str | os.PathLike[str] | None) -> Path:
    folder = Path(folder or Path(tempfile.gettempdir()) / f"coachhook-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _lock(names: list[str], count: int, folder: Path) -> list[str]:
    """Wait for so many GPUs, and hold their locks until this process ends."""
    taken = _try_to_lock(names, count, folder)
    if not taken:
        logger.info("waiting until %d of the GPUs %s are free", count, ",".join(names))
    while not taken:
        time.sleep(1)
        taken = _try_to_lock(names, count, folder)
    return taken


def _try_to_lock(names: list[str], count: int, folder: Path) -> list[str]:
    """All at once or none, so that no two processes wait with a part of what both want."""
    held = {}
    for name in names:
        lock = os.open(folder / name.replace("/", "_"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        held[name] = lock  # left open: closing gives the GPU back
        if len(held) == count:
            return list(held)
    for lock in held.values():
        os.close(lock)
    return []
