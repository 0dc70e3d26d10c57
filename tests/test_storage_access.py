"""Who may read what nbdpull creates in a store: modes, owner and group by those of its root folder."""

import itertools
import os

import pytest

from nbdpull.storage import access
from nbdpull.storage.access import OWNER, Access

IS_ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def umask():
    """No umask may change what is created."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o7777


def made(path, wanted, bits):
    """Return the status of a file that was given these bits."""
    with open(path, "xb") as file:
        access.give(file.fileno(), bits, wanted)
    return path.stat()


@pytest.mark.parametrize("bits", [0o700, 0o750, 0o770, 0o2770, 0o710, 0o730, 0o755, 0o777, 0o701, 0o2755])
def test_the_group_of_a_root_folder_that_others_cannot_enter_gets_in(tmp_path, bits):
    """A folder that everybody can enter owes its group bits to the umask."""
    tmp_path.chmod(bits)
    found = access.of_store(str(tmp_path))
    group = 0 if bits & 0o007 else bits & 0o070
    assert found.file == 0o600 | group & 0o060  # nobody executes a file
    assert found.folder & 0o777 == 0o700 | group
    assert bool(found.folder & 0o2000) == (bits == 0o2770)
    assert found.group == (-1 if bits & 0o007 else tmp_path.stat().st_gid)


def test_a_root_folder_that_is_not_there(tmp_path):
    assert access.of_store(str(tmp_path / "none")) == OWNER


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files to others")
def test_root_leaves_the_files_of_a_store_to_its_owner_and_group(tmp_path):
    os.chown(tmp_path, 65534, 65533)
    tmp_path.chmod(0o750)
    found = access.of_store(str(tmp_path))
    assert found == Access(0o750, 0o640, 65533, 65534)
    status = made(tmp_path / "file", found, found.file)
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65534, 65533, 0o640)
    tmp_path.chmod(0o755)  # the owner has to be able to read it even then
    assert access.of_store(str(tmp_path)) == OWNER._replace(owner=65534)


@pytest.mark.parametrize("bits, left", [(0o640, 0o600), (0o660, 0o600), (0o600, 0o600), (0o2770, 0o2700)])
def test_without_the_group_nobody_else_gets_in(tmp_path, monkeypatch, bits, left):
    """The bits would be for another group."""

    def denied(*_args):
        raise PermissionError

    monkeypatch.setattr(access.os, "fchown", denied)
    status = made(tmp_path / "file", Access(group=os.getegid() + 1), bits)
    assert status.st_mode & 0o7777 == left


def test_a_file_system_without_modes_is_no_failure(tmp_path, monkeypatch):
    def denied(*_args):
        raise PermissionError

    monkeypatch.setattr(access.os, "fchmod", denied)
    assert made(tmp_path / "file", OWNER, 0o640).st_size == 0


# -- can any user read a store? ---------------------------------------------------------------------------------------


@pytest.fixture
def above(tmp_path, monkeypatch):
    """Return a folder above which any user gets in, whatever the directory of the tests is like."""
    real = os.stat

    def stat(path, **more):
        found = real(path, **more)
        is_above = tmp_path.is_relative_to(path) if isinstance(path, str) else False
        return os.stat_result((found.st_mode | 0o005, *found[1:])) if is_above and path != str(tmp_path) else found

    monkeypatch.setattr(access.os, "stat", stat)
    return tmp_path


def test_a_store_is_open_if_every_folder_above_it_is(above):
    store = above / "a" / "b"
    store.mkdir(parents=True)
    for bits in itertools.product([0o700, 0o711, 0o755, 0o744], repeat=3):
        for folder, each in zip((above, store.parent, store), bits):
            folder.chmod(each)
        assert access.lets_all_in(str(store)) == all(each & 0o001 for each in bits), bits
    assert not access.lets_all_in(str(store / "none"))


@pytest.mark.parametrize("folder, file, is_open", [
    (0o755, 0o644, True),
    (0o711, 0o644, True),  # its name can be guessed
    (0o700, 0o644, False),
    (0o755, 0o640, False),
    (0o755, 0o601, False),
])  # fmt: skip
def test_files_for_everybody(tmp_path, folder, file, is_open):
    (tmp_path / "vm1").mkdir()
    (tmp_path / "vm1" / "secret").touch()
    (tmp_path / "vm1" / "secret").chmod(0o600)
    (tmp_path / "vm1" / "x").touch()
    (tmp_path / "vm1" / "x").chmod(file)
    (tmp_path / "vm1").chmod(folder)
    assert access.has_file_for_all(str(tmp_path), "vm1") == is_open
    assert not access.has_file_for_all(str(tmp_path), "vm2")


def test_a_link_in_a_store_is_judged_by_itself(tmp_path):
    """What it points to is not in the store; but a link has all bits."""
    (tmp_path / "vm1").mkdir()
    (tmp_path / "vm1").chmod(0o755)
    (tmp_path / "vm1" / "private").mkdir()
    (tmp_path / "vm1" / "private").chmod(0o700)
    assert not access.has_file_for_all(str(tmp_path), "vm1")
    (tmp_path / "vm1" / "private").chmod(0o711)
    assert access.has_file_for_all(str(tmp_path), "vm1")
