"""What a long job needs of a machine, what the machine has, and the refusal of a job that cannot fit."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from coachhook.errors import CoachHookError


class PreflightError(CoachHookError, RuntimeError):
    """A job cannot fit on this machine."""


@dataclass(frozen=True)
class Needs:
    """What one job needs.

    Attributes:
        job: what it is, in words.
        memory_bytes: peak on `device`.
        disk_bytes: of all that it writes or downloads.
        tokens: how many tokens go through the model.
        seconds: about how long it takes; None where no trial was made, or none would tell.
        parts: what `memory_bytes` is the sum of.
        disk_parts: what `disk_bytes` is the sum of.
        device: where the model runs.
        host_bytes: peak in main memory where `device` has a memory of its own, else 0.
        untimed: why a trial would not tell `seconds`, where it is None.
    """

    memory_bytes: int
    disk_bytes: int
    tokens: int
    seconds: float | None
    parts: dict[str, int]
    disk_parts: dict[str, int] = field(default_factory=dict)
    job: str = "the job"
    device: str = "cpu"
    host_bytes: int = 0
    untimed: str = "it depends on the edits"


@dataclass(frozen=True)
class Available:
    """What a machine has free, in bytes: on the device, in main memory, and on the disk of a folder."""

    memory_bytes: int
    host_bytes: int
    disk_bytes: int

    @classmethod
    def measure(cls, device: str | torch.device = "cpu", folder: str | os.PathLike = ".") -> Available:
        """folder: where the job writes; it need not exist yet."""
        host = min(psutil.virtual_memory().available, _left_in_control_group())
        device = torch.device(device)
        memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host
        folder = Path(folder).absolute()
        while not folder.exists():
            folder = folder.parent
        return cls(memory, host, shutil.disk_usage(folder).free)


def refuse_if_too_large(needs: Needs, available: Available) -> None:
    """Refuse a job before it starts.

    Raises:
        PreflightError: it needs more than there is; says what, how much, and how to need less.
    """
    largest = max(needs.parts, key=needs.parts.get, default="")
    of_what = f", {size(needs.parts[largest])} of it for {largest}" if largest else ""
    remedy = "take fewer layers, smaller batches or a smaller dtype, or a larger machine"
    checks = [
        (f"memory on {needs.device}", needs.memory_bytes, available.memory_bytes, of_what, remedy),
        ("main memory", needs.host_bytes, available.host_bytes, "", "take fewer layers or edits, or a larger machine"),
        ("disk", needs.disk_bytes, available.disk_bytes, "", "free some, or write elsewhere"),
    ]
    for name, wanted, there, detail, advice in checks:
        if wanted > there:
            raise PreflightError(
                f"{needs.job}: needs {size(wanted)} of {name}{detail}, {size(there)} are free; {advice}"
            )


def size(count: int) -> str:
    """Bytes in words: 1.64 GB (powers of 1,000)."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"


def _left_in_control_group() -> float:
    """What a batch system or container still allows this process, which the machine's own count does not know."""
    left = float("inf")
    groups = dict(line.split(":", 2)[1:] for line in _read("/proc/self/cgroup").splitlines())
    version_2 = Path("/sys/fs/cgroup", groups.get("", "/").strip("/"))
    version_1 = Path("/sys/fs/cgroup/memory", groups.get("memory", "/").strip("/"))
    for folder in (version_2, *version_2.parents, version_1, *version_1.parents):
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if most.isdigit() and used.isdigit():
                statistics = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                left = min(left, int(most) - int(used) + int(statistics.get(cache, 0)))
    return left


def _read(path: str | os.PathLike) -> str:
    """A file of the kernel's; empty where it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
