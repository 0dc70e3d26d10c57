"""What the kernel reports about a file system; if it reports nothing, nothing is invented."""

import errno
import os

import pytest
from stores import KIB, MIB, unprivileged

from nbdpull.core import file_system

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody else")


def fails(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


def test_size_and_free_space(tmp_path):
    status = os.statvfs(tmp_path)
    assert file_system.size_bytes(str(tmp_path)) == status.f_blocks * status.f_frsize
    assert 0 <= file_system.free_bytes(str(tmp_path)) <= file_system.size_bytes(str(tmp_path))


def test_unknown_figures(tmp_path, monkeypatch):
    assert file_system.free_bytes(str(tmp_path / "none")) is None
    monkeypatch.setattr(os, "statvfs", fails(errno.ENOSYS))
    assert file_system.free_bytes(str(tmp_path)) is None
    assert file_system.size_bytes(str(tmp_path)) is None


def test_allocated_bytes_of_files(tmp_path):
    data, hole = tmp_path / "data", tmp_path / "hole"
    with data.open("wb") as file:
        file.write(b"\x55" * 256 * KIB)
        file.flush()
        os.fdatasync(file.fileno())  # a file system that allocates late has allocated now
    hole.touch()
    os.truncate(hole, 64 * MIB)
    assert 256 * KIB <= file_system.used_bytes([str(data), str(hole)]) < MIB
    assert file_system.used_bytes([]) == 0
    with pytest.raises(FileNotFoundError):
        file_system.used_bytes([str(data), str(tmp_path / "none")])


def test_a_folder_that_can_be_written_to(tmp_path):
    assert file_system.why_unwritable(str(tmp_path)) is None


@as_root
def test_why_a_folder_cannot_be_written_to(tmp_path):
    with unprivileged() as folder:
        assert file_system.why_unwritable(str(folder)) is None
        folder.chmod(0o555)
        assert file_system.why_unwritable(str(folder)) == "Permission denied"
        folder.chmod(0o755)
        assert file_system.why_unwritable(str(tmp_path)) == "Permission denied"  # nor can it be reached


def test_a_folder_on_a_file_system_that_is_read_only(tmp_path, monkeypatch):
    status = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(
        os, "statvfs", lambda _: os.statvfs_result((*status[:8], status.f_flag | os.ST_RDONLY, *status[9:]))
    )
    assert file_system.why_unwritable(str(tmp_path)) == "Read-only file system"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_sync_that_fails_is_an_error(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", fails(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        file_system.sync_folder(0)


def test_no_sync_of_folders_is_no_error(monkeypatch):
    monkeypatch.setattr(os, "fsync", fails(errno.EINVAL))
    file_system.sync_folder(0)


def test_writeback_that_is_not_supported_is_no_error():
    reading, writing = os.pipe()
    file_system.start_writeback(writing)
    os.close(reading)
    os.close(writing)
    file_system.start_writeback(-1)
