"""Files are written whole or not at all, whatever happens, and say what is wrong where they cannot be written."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from coachhook.errors import CoachHookError, one_line
from coachhook.tensor_files import DamagedFileError, read_tensors, write_tensors
from coachhook.whole_files import (
    alone,
    check_writable,
    digest_path,
    read_checked,
    temporary_path,
    whole_file,
    whole_folder,
    write_bytes,
    write_checked,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(IsADirectoryError), whole_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new, half of" + tmp_path.read_bytes())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_file_is_read_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x")
        temporary.chmod(0o600)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path, what):
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, living = temporary_path(tmp_path / "a", gone.pid), temporary_path(tmp_path / "a", os.getppid())
    for left in (dead, living):
        left.mkdir() if what == "folder" else left.touch()
    if what == "folder":
        with whole_folder(tmp_path / "a") as folder:
            (folder / "one").touch()
    else:
        write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == sorted(["a", living.name])


def test_a_folders_files_come_in_order_and_others_stay(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (moved.append(Path(new).name), replace(old, new)))
    with whole_folder(tmp_path / "a", last="b") as folder:
        for name in "abc":
            (folder / name).write_text(name)
    assert moved == ["a", "c", "b"]
    assert names(tmp_path / "a") == ["a", "b", "c", "mine"]
    assert names(tmp_path) == ["a"]


_WRITE = """
import resource, signal, sys
import torch
from coachhook.errors import one_line
from coachhook.tensor_files import write_tensors
from coachhook.whole_files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    if sys.argv[2] == "bytes":
        write_bytes(sys.argv[1], b"new" * 5000)
    else:
        write_tensors(sys.argv[1], {"x": torch.zeros(5000)}, {})
except OSError as error:
    print(one_line(error))
"""


@pytest.mark.parametrize("what", ["bytes", "tensors"])
def test_where_the_system_takes_no_more_the_old_file_stays_and_one_line_says_so(tmp_path, what):
    (tmp_path / "a").write_bytes(b"old")
    run = subprocess.run([sys.executable, "-c", _WRITE, tmp_path / "a", what], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told = f"{tmp_path / 'a'}: File too large; raise the limit on file sizes (ulimit -f), then start again"
    assert run.stdout.startswith(told)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CoachHookError("layers: none"), "layers: none"),
        (OSError(errno.ENOSPC, "x", "r/a"), "r/a: No space left on device; make room on its disk, then start again"),
        (OSError(errno.ENOENT, "x", Path("r/a")), "r/a: No such file or directory; put it back, then start again"),
        (OSError(errno.EROFS, "x"), "Read-only file system; make it writable, or work in another folder, then"),
        (PermissionError(errno.EACCES, "x", "a"), "a: Permission denied; give this user the right to it, then"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, told):
    assert one_line(error).startswith(told)
    assert "\n" not in one_line(error)


@pytest.mark.parametrize("error", [ValueError("a"), OSError("without a number"), ConnectionError(104, "reset")])
def test_other_errors_keep_their_traceback(error):
    assert one_line(error) is None


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-1], lambda _: b""])
def test_damage_is_noticed(tmp_path, damage, caplog):
    path = tmp_path / "a"
    assert read_checked(path) is None
    write_checked(path, b"content")
    assert read_checked(path) == b"content"
    path.write_bytes(damage(b"content"))
    assert read_checked(path) is None
    assert f"{path}: damaged" in caplog.text
    digest_path(path).unlink()
    assert read_checked(path) is None
    tensors = {"x": torch.arange(100.0), "y": torch.zeros((), dtype=torch.bfloat16)}
    write_tensors(path, tensors, {"best": float("inf"), "pairs": [(1, 2)]})
    read, metadata = read_tensors(path)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert metadata == {"best": float("inf"), "pairs": [[1, 2]]}
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFileError):
        read_tensors(path)


def test_the_digest_is_one_that_sha256sum_checks(tmp_path):
    write_checked(tmp_path / "a", b"content")
    assert subprocess.run(["sha256sum", "--check", "--status", "a.sha256"], cwd=tmp_path).returncode == 0


_ALONE = """
import sys, time
from coachhook.whole_files import alone
with alone(sys.argv[1]):
    print("inside", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def inside(lock, seconds):
    return subprocess.Popen([sys.executable, "-c", _ALONE, lock, seconds], stdout=subprocess.PIPE, text=True)


def test_one_process_at_a_time_and_a_kill_leaves_nothing_to_remove_by_hand(tmp_path):
    lock = tmp_path / "new" / "a.lock"
    with inside(lock, "60") as first:
        assert first.stdout.readline() == "inside\n"
        with inside(lock, "0") as second:
            time.sleep(1.5)
            assert second.poll() is None
            first.kill()
            assert second.stdout.readline() == "inside\n"
    assert second.returncode == 0
    with alone(lock):
        pass
    assert not lock.exists()


def test_a_folder_that_takes_no_files_is_refused_before_any_work(tmp_path):
    check_writable(tmp_path / "still" / "to" / "be" / "made")
    with pytest.raises(OSError, match="No space left on device") as full:
        check_writable(tmp_path / "made", least_bytes=2**60)
    assert one_line(full.value).startswith(f"{tmp_path / 'made'}: No space left on device; make room")
    with pytest.raises(OSError, match=r"Read-only file system|Permission denied"):
        check_writable("/proc/self")
