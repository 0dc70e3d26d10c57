"""A temporary directory: who can find and use what is in it, and which ones a later process removes."""

import os
import stat
from pathlib import Path

import pytest

from nbdpull.core import errors, work_folder

PREFIX = "nbdpull-test-"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")


def modes(*paths):
    return [stat.S_IMODE(os.stat(path).st_mode) for path in paths]


def test_it_is_unlistable_and_removed_at_the_end(tmp_path):
    with work_folder.made(str(tmp_path), PREFIX) as folder:
        outer = os.path.dirname(folder)
        assert os.path.dirname(outer) == str(tmp_path) and os.path.basename(outer).startswith(PREFIX)
        assert modes(outer, folder) == [0o711, 0o700]
        Path(folder, "file").write_text("x")
    assert os.listdir(tmp_path) == []


def test_it_is_removed_after_an_error_too(tmp_path):
    with pytest.raises(errors.Damaged), work_folder.made(str(tmp_path), PREFIX):
        raise errors.Damaged("no")
    assert os.listdir(tmp_path) == []


def test_a_place_where_none_can_be_made(tmp_path):
    with (
        pytest.raises(errors.OutputError, match="cannot create a folder in"),
        work_folder.made(f"{tmp_path}/no", PREFIX),
    ):
        pass


def old(path):
    """The directory of a process that was killed long ago, according to its time."""
    path.mkdir()
    os.utime(path, (1, 1))
    return path


def test_what_a_killed_process_left_is_removed(tmp_path):
    """But what is locked is in use, a young one may be about to be locked, and one with another name is not ours."""
    left, other = old(tmp_path / f"{PREFIX}left"), old(tmp_path / "nbdpull-other")
    young = tmp_path / f"{PREFIX}young"
    young.mkdir()
    with work_folder.made(str(tmp_path), PREFIX) as folder:
        assert not left.exists()
        held = os.path.dirname(folder)
        os.utime(held, (1, 1))
        with work_folder.made(str(tmp_path), PREFIX):
            assert os.path.exists(folder)
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name}


def test_a_link_called_so_is_not_followed(tmp_path):
    target = old(tmp_path / "theirs")
    (tmp_path / f"{PREFIX}link").symlink_to(target)
    with work_folder.made(str(tmp_path), PREFIX):
        assert target.exists()


def test_a_parent_with_a_name_that_is_a_pattern(tmp_path):
    parent = tmp_path / "[a]*"
    parent.mkdir()
    left = old(parent / f"{PREFIX}left")
    with work_folder.made(str(parent), PREFIX):
        assert not left.exists()


@AS_ROOT
@pytest.mark.parametrize("user, mode, file_mode", [(65534, 0o700, 0o600), (None, 0o711, 0o666)])
def test_folders_given_to_another_user(tmp_path, user, mode, file_mode):
    """None: an old libvirt does not report QEMU's user; the directory has to work nevertheless."""
    for name in ("nbd.sock", "nvram"):
        (tmp_path / name).write_bytes(b"secret")
    work_folder.give(str(tmp_path), user)
    paths = [tmp_path, *tmp_path.iterdir()]
    assert {path.stat().st_uid for path in paths} == {user or 0}
    assert modes(*paths) == [mode, file_mode, file_mode]
