"""A new file gets its name when it is complete, and never before."""

import errno
import os

import pytest

from nbdpull.core import errors
from nbdpull.targets import replace


def test_the_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with replace.whole(str(path)) as draft:
        with open(draft, "wb") as file:
            file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["image"]


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replace.whole(str(path)):
        raise KeyError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["image"]


def test_two_cannot_write_one_draft(tmp_path):
    path = tmp_path / "image"
    message = "image.partial exists: another restore is writing it"
    with replace.whole(str(path)), pytest.raises(errors.OutputExists, match=message), replace.whole(str(path)):
        pass
    assert os.listdir(tmp_path) == ["image"]


@pytest.fixture
def fsync(monkeypatch):
    """fsync(number): let that of a directory fail with this errno."""
    real = os.fsync

    def fails(number):
        def call(descriptor):
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", call)

    return fails


def test_a_file_system_without_fsync_of_folders_takes_it(tmp_path, fsync):
    """Some network file systems are like that: the image had its name, and the restore failed nevertheless."""
    fsync(errno.EINVAL)
    with replace.whole(str(tmp_path / "image")):
        pass
    assert os.listdir(tmp_path) == ["image"]


def test_a_name_that_is_not_durable_is_an_error(tmp_path, fsync):
    fsync(errno.EIO)
    with pytest.raises(errors.OutputError, match="image: Input/output error"), replace.whole(str(tmp_path / "image")):
        pass
