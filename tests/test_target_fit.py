"""Whether a disk fits into its place: reported before anything is written, and the check changes nothing."""

import contextlib
import errno
import os
import random
from types import SimpleNamespace

import pytest

from nbdpull.core import errors
from nbdpull.images import image_lock
from nbdpull.targets import fit
from nbdpull.targets.places import DEVICE, EXISTING, NEW, STDOUT, Place

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_changes(tmp_path):
    def state():
        return {path: tuple(path.lstat())[:9] for path in tmp_path.rglob("*")}

    before = []
    yield lambda: before.append(state())
    assert [state()] == before or not before


def refused(kind, says, call, *args, **options):
    with pytest.raises(kind, match=says) as caught:
        call(*args, **options)
    assert caught.type is kind


def test_an_owner_that_would_be_lost(tmp_path, nothing_changes, monkeypatch):
    """Only root can give a file away: a QEMU that runs as the owner could not open the new image."""
    path = tmp_path / "image"
    assert fit.owner_lost(Place(NEW, str(path))) == []
    path.write_bytes(b"old")
    nothing_changes()
    before = path.stat()
    for user, groups, is_lost in ((0, [], False), (before.st_uid, [before.st_gid], False),
                                  (before.st_uid + 1000, [before.st_gid], True)):  # fmt: skip
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        monkeypatch.setattr(os, "getgroups", lambda groups=groups: groups)
        assert fit.owner_lost(Place(EXISTING, str(path))) == [], "it stays"
        assert fit.owner_lost(Place(NEW, str(path))) == is_lost * [
            f"{path} belongs to user {before.st_uid} (group {before.st_gid}), and will belong to you, as only root can "
            "give a file away: if QEMU runs as that user, it cannot open the new one"
        ]


# -- what is there ----------------------------------------------------------------------------------------------------


def test_a_new_image_replaces_nothing_unasked(tmp_path, nothing_changes):
    path = tmp_path / "image"
    fit.require_fit(Place(NEW, str(path)), MIB)
    path.write_bytes(b"old")
    nothing_changes()
    refused(errors.OutputExists, "image exists; use --force", fit.require_fit, Place(NEW, str(path)), MIB)
    fit.require_fit(Place(NEW, str(path)), MIB, force=True)


def test_a_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / "link").symlink_to("none")
    refused(errors.OutputExists, "link exists", fit.require_fit, Place(NEW, str(tmp_path / "link")), MIB)


@pytest.mark.parametrize("make, says", [(os.mkdir, "is a folder"), (os.mkfifo, "is not a regular file")])
def test_a_file_that_is_not_an_image_is_never_replaced(tmp_path, make, says):
    make(tmp_path / "there")
    refused(errors.OutputExists, says, fit.require_fit, Place(NEW, str(tmp_path / "there")), MIB, force=True)


def test_an_image_in_use_is_never_replaced(tmp_path):
    """Its VM would continue with a file that no longer has a name."""
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    with open(path, "rb+") as used:
        image_lock.keep_all_out(used.fileno(), str(path))
        refused(errors.Busy, "image", fit.require_fit, Place(NEW, str(path)), MIB, force=True)
    fit.require_fit(Place(NEW, str(path)), MIB, force=True)


def test_a_device_cannot_grow(tmp_path):
    path = tmp_path / "device"
    path.write_bytes(bytes(MIB))
    there = Place(DEVICE, str(path))
    fit.require_fit(there, MIB, force=True)
    too_small = r"device has 1.0 MiB \(1048576 bytes\), the disk needs 1.0 MiB \(1048577 bytes\); nothing was written"
    refused(errors.OutputError, too_small, fit.require_fit, there, MIB + 1, force=True)
    refused(errors.OutputExists, "use --force to overwrite everything on it", fit.require_fit, there, MIB)


def test_a_file_can_grow(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(MIB))
    fit.require_fit(Place(EXISTING, str(path)), 2 * MIB, in_place=True)


@pytest.mark.parametrize("terminal", [True, False])
def test_no_disk_goes_to_a_terminal(monkeypatch, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    expected = pytest.raises(errors.UsageError, match="stdout is a terminal") if terminal else contextlib.nullcontext()
    with expected:
        fit.require_fit(Place(STDOUT, "-"), MIB)


# -- the folder -------------------------------------------------------------------------------------------------------


def test_directories_that_exist_or_will_be_created(tmp_path):
    for path, to_be_made in ((tmp_path / "a", None), (tmp_path / "new/a", tmp_path / "new")):
        fit.require_folder(Place(NEW, str(path)), to_be_made and str(to_be_made))
    fit.require_folder(Place(EXISTING, str(tmp_path / "none/a")))


def test_a_directory_that_will_not_be_created(tmp_path):
    says = f"cannot create {tmp_path}/x/y/a: there is no directory {tmp_path}/x/y; create it first"
    for to_be_made in (None, f"{tmp_path}/x"):
        refused(errors.OutputError, says, fit.require_folder, Place(NEW, f"{tmp_path}/x/y/a"), to_be_made)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    says = f"{tmp_path}/file exists and is not a directory"
    for path in ("file/a", "file/b/a"):
        refused(errors.OutputExists, says, fit.require_folder, Place(NEW, f"{tmp_path}/{path}"), f"{tmp_path}/file/b")


# -- how much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_file_is_found_to_the_byte(tmp_path, monkeypatch, seed):
    """The file system is asked for sizes: it reveals its limit in no other way."""
    rng = random.Random(seed)
    limit = rng.randrange(1 << 31, 1 << rng.randrange(33, 61))
    monkeypatch.setattr(fit.os, "ftruncate", lambda _file, size: too_large(size > limit))
    there = Place(NEW, str(tmp_path / "new/folder/image"))
    fit.require_file_size(there, limit)
    assert fit._largest_file(str(tmp_path), 1 << 62) == limit
    refused(errors.OutputError, f"none can be larger than .* on the file system of {tmp_path}; restore it as qcow2",
            fit.require_file_size, there, limit + rng.choice([1, 1 << 40]))  # fmt: skip
    fit.require_file_size(Place(NEW, there.path, "qcow2"), limit + 1)


def too_large(is_so):
    if is_so:
        raise OSError(errno.EFBIG, "File too large")


def test_what_any_file_system_takes_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(fit.os, "ftruncate", lambda *_: pytest.fail("it tried"))
    fit.require_file_size(Place(NEW, str(tmp_path / "image")), (1 << 31) - 1)


@pytest.mark.parametrize("seed", range(20))
def test_images_on_one_file_system_share_its_room(tmp_path, monkeypatch, seed):
    """And their exact size, which costs a read of every index, is computed only if bounds do not suffice."""
    rng = random.Random(seed)
    disks = [f"{tmp_path}/fs{n}" for n in range(3)]
    free = {disk: rng.randrange(0, 400 * MIB) for disk in disks}
    for disk in disks:
        os.mkdir(disk)
    monkeypatch.setattr(fit.file_system, "free_bytes", lambda folder: free[folder])
    asked, needs = [], []
    here = SimpleNamespace(**{**vars(os), "stat": lambda folder: SimpleNamespace(st_dev=folder)})
    monkeypatch.setattr(fit, "os", here)
    for n in range(rng.randrange(1, 8)):
        exact = rng.randrange(0, 150 * MIB)
        needs.append((rng.choice(disks), exact, exact + rng.choice([0, 0, 50 * MIB]), n))
    given = [(Place(NEW, f"{disk}/new/{n}"), lambda n=n, exact=exact: (asked.append(n), exact)[1], bound)
             for disk, exact, bound, n in needs]  # fmt: skip
    short = {disk for disk in disks if sum(exact for at, exact, *_ in needs if at == disk) > free[disk]}
    unsure = {disk for disk in disks if sum(bound for at, _, bound, _ in needs if at == disk) > free[disk]}
    if short:
        with pytest.raises(errors.OutputFull) as caught:
            fit.require_space(given)
        assert any(str(caught.value).startswith(f"cannot write to {disk}: the images take ") for disk in short)
    else:
        fit.require_space(given)
        assert sorted(asked) == sorted(n for disk, *_, n in needs if disk in unsure)


def test_a_file_system_that_does_not_report_free_space(tmp_path, monkeypatch):
    monkeypatch.setattr(fit.file_system, "free_bytes", lambda _folder: None)
    fit.require_space([(Place(NEW, str(tmp_path / "image")), lambda: pytest.fail("it was asked"), 1 << 60)])
