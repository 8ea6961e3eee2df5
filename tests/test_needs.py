import dataclasses
import shutil

import psutil
import pytest

from coachhook import needs as module
from coachhook.needs import Available, Needs, PreflightError, refuse_if_too_large, size

PLENTY = Available(10**10, 10**10, 10**10)
JOB = Needs(3 * 10**9, 10**9, 5, None, {"weights": 2 * 10**9, "sums": 10**9}, job="a covariance", device="cuda:1")


def test_what_fits_is_not_refused():
    refuse_if_too_large(JOB, PLENTY)
    refuse_if_too_large(JOB, Available(JOB.memory_bytes, 0, JOB.disk_bytes))
    refuse_if_too_large(Needs(0, 0, 0, None, {}), Available(0, 0, 0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"memory_bytes": 1},
            "a covariance: needs 3 GB of memory on cuda:1, 2 GB of it for weights, 1 bytes are free; take fewer layers",
        ),
        ({"disk_bytes": 999 * 10**6}, "a covariance: needs 1 GB of disk, 999 MB are free; free some"),
        ({"host_bytes": 10**9}, "a covariance: needs 4 GB of main memory, 1 GB are free; take fewer layers or edits"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_number(changes, words):
    job = dataclasses.replace(JOB, host_bytes=4 * 10**9)
    with pytest.raises(PreflightError, match=words) as caught:
        refuse_if_too_large(job, dataclasses.replace(PLENTY, **changes))
    assert "\n" not in str(caught.value)


def test_bytes_in_words():
    assert [size(count) for count in (0, 999, 1000, 1_640_000_000, 328e6, 2e12)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "1.64 GB",
        "328 MB",
        "2 TB",
    ]


def test_what_is_free_is_what_the_system_says(tmp_path):
    there = Available.measure("cpu", tmp_path / "not" / "yet")
    assert there.memory_bytes == there.host_bytes
    assert 0 < there.memory_bytes < psutil.virtual_memory().total
    assert abs(there.disk_bytes - shutil.disk_usage(tmp_path).free) < 1e9


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_the_batch_system_counts(monkeypatch, version):
    """A job's own limit and that of the group above it, page cache being free."""
    below = {
        1: {
            "/proc/self/cgroup": "4:memory:/slurm/job_7\n1:cpu:/\n0::/\n",
            "/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": "9000\n",
            "/sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes": "2000\n",
            "/sys/fs/cgroup/memory/slurm/job_7/memory.stat": "cache 700\ntotal_inactive_file 500\n",
            "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": "9223372036854771712\n",
            "/sys/fs/cgroup/memory/slurm/memory.usage_in_bytes": "3000\n",
        },
        2: {
            "/proc/self/cgroup": "0::/slurm/job_7\n",
            "/sys/fs/cgroup/slurm/job_7/memory.max": "max\n",
            "/sys/fs/cgroup/slurm/job_7/memory.current": "2000\n",
            "/sys/fs/cgroup/slurm/memory.max": "9000\n",
            "/sys/fs/cgroup/slurm/memory.current": "2000\n",
            "/sys/fs/cgroup/slurm/memory.stat": "anon 1\ninactive_file 500\n",
        },
    }
    monkeypatch.setattr(module, "_read", lambda path: below[version].get(str(path), ""))
    assert Available.measure().memory_bytes == 7500


def test_without_control_groups_there_is_no_limit(monkeypatch):
    monkeypatch.setattr(module, "_read", lambda path: "")
    assert module._left_in_control_group() == float("inf")
