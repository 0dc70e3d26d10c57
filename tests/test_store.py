"""The store: nothing is overwritten, each error says who must act, and what was published is complete."""

import errno
import fcntl
import grp
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from stores import MIB, flipped, package_environment, small_disk, unprivileged

from nbdpull.core import errors
from nbdpull.core.os_error import translated
from nbdpull.format import layout
from nbdpull.repository.marker import is_new, open_or_create, open_store, uuid_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: run as root")


@pytest.fixture
def store(tmp_path):
    return open_or_create(str(tmp_path / "store"))


def fails(number):
    """Return a function that fails with this errno."""

    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


# -- opening ----------------------------------------------------------------------------------------------------------


def test_a_new_store_is_opened_again(tmp_path):
    made = open_or_create(str(tmp_path / "a" / "b"))
    assert uuid_of(open_store(str(tmp_path / "a" / "b"))) == uuid_of(made)
    assert uuid_of(open_or_create(str(tmp_path / "a" / "b"))) == uuid_of(made)
    assert os.listdir(tmp_path / "a" / "b") == ["nbdpull.json"]


def test_two_stores_differ(tmp_path):
    one, other = open_or_create(str(tmp_path / "a")), open_or_create(str(tmp_path / "b"))
    assert uuid_of(one) != uuid_of(other)


def test_an_empty_folder_becomes_a_store(tmp_path):
    (tmp_path / "lost+found").mkdir()  # of a file system of its own
    open_or_create(str(tmp_path))


def test_a_folder_with_other_things_does_not(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(errors.StoreError, match="not empty, and is not an nbdpull store"):
        open_or_create(str(tmp_path))
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_where_a_store_can_still_be_made(tmp_path, monkeypatch):
    assert is_new(str(tmp_path)) and is_new(str(tmp_path / "none"))
    (tmp_path / "lost+found").mkdir()  # a file system of its own
    (tmp_path / "nbdpull.json.0123abcd.draft").touch()  # of a run that was killed
    assert is_new(str(tmp_path))
    open_or_create(str(tmp_path))
    assert not is_new(str(tmp_path))
    monkeypatch.setattr(os, "listdir", fails(errno.EACCES))
    with pytest.raises(errors.OutputError, match="Permission denied"):
        is_new(str(tmp_path))


def test_what_is_free(store, monkeypatch):
    free = os.statvfs(store.root)
    assert 0 < store.free_bytes() <= free.f_blocks * free.f_frsize
    monkeypatch.setattr(os, "statvfs", fails(errno.ENOSYS))
    assert store.free_bytes() is None


@pytest.mark.parametrize("size", [0, 5, 7, 100])
def test_a_file_that_comes_in_pieces_is_read_whole(store, monkeypatch, size):
    """The system may return less than was requested; a network file system does."""
    store.publish("file", bytes(range(size)))
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 7)))
    assert store.read("file") == store.find("file") == bytes(range(size))
    assert store.read("file", limit=size) == bytes(range(size))
    if size:
        with pytest.raises(errors.Damaged, match=f"more than {size - 1} bytes"):
            store.read("file", limit=size - 1)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputError):
        open_or_create(str(tmp_path / "file"))
    with pytest.raises(errors.StoreError, match="no such directory"):
        open_store(str(tmp_path / "file"))


def test_no_store(tmp_path):
    with pytest.raises(errors.StoreError, match="no such directory"):
        open_store(str(tmp_path / "none"))
    with pytest.raises(errors.StoreError, match=r"is not an nbdpull store \(it has no nbdpull.json\)"):
        open_store(str(tmp_path))


def test_a_store_of_a_later_format(store):
    marker = Path(store.root, "nbdpull.json")
    marker.write_bytes(layout.seal({"format": "nbdpull/3", "uuid": "x"}))
    for opening in (open_store, open_or_create):
        with pytest.raises(errors.FormatTooNew, match=r"nbdpull.json: needs nbdpull/3"):
            opening(store.root)


def test_a_store_of_a_format_that_was_never_released(store):
    Path(store.root, "nbdpull.json").write_bytes(layout.seal({"format": "nbdpull/1", "uuid": "x"}))
    for opening in (open_store, open_or_create):
        with pytest.raises(errors.FormatTooOld, match=r"nbdpull.json: .*nbdpull/1.*; pull into a new directory"):
            opening(store.root)


def test_a_damaged_marker(store):
    marker = Path(store.root, "nbdpull.json")
    marker.write_bytes(flipped(marker.read_bytes(), 30))
    for opening in (open_store, open_or_create):
        with pytest.raises(errors.Damaged, match="nbdpull.json"):
            opening(store.root)


def test_runs_that_make_one_store_at_once_agree(tmp_path):
    """Two domains that two timers pull into one new directory must not be in each other's way."""
    for attempt in range(20):
        root, ids, barrier = str(tmp_path / str(attempt)), [], threading.Barrier(4)

        def make(root=root, ids=ids, barrier=barrier):
            barrier.wait()
            made = open_or_create(root)
            ids.append(uuid_of(made))
            made.make_folder("vm1")

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == 4 and len(set(ids)) == 1
        assert sorted(os.listdir(root)) == ["nbdpull.json", "vm1"]


def test_no_permission(tmp_path):
    with unprivileged() as folder:
        (folder / "closed").mkdir(mode=0o555)
        with pytest.raises(errors.OutputError, match="Permission denied"):
            open_or_create(str(folder / "closed"))
        with pytest.raises(errors.OutputError, match="Permission denied"):
            open_or_create(str(folder / "closed" / "store"))
        (folder / "blind").mkdir(mode=0o333)
        with pytest.raises(errors.OutputError, match="Permission denied"):
            open_or_create(str(folder / "blind"))


def test_a_store_that_may_only_be_read_is_read(tmp_path):
    with unprivileged() as folder:
        made = open_or_create(str(folder / "store"))
        os.chmod(folder / "store", 0o555)
        assert uuid_of(open_store(str(folder / "store"))) == uuid_of(made)
        with pytest.raises(errors.OutputError, match="Permission denied"):
            open_or_create(str(folder / "store"))
        os.chmod(folder / "store", 0o755)


# -- who may read it --------------------------------------------------------------------------------------------------


@pytest.fixture
def umask():
    """Return a function that sets the umask until the test ends."""
    before = os.umask(0)
    yield os.umask
    os.umask(before)


def modes(root):
    """Return {relative path: mode} of a directory and everything in it."""
    return {str(path.relative_to(root)): path.stat().st_mode & 0o7777 for path in [root, *sorted(root.rglob("*"))]}


def fill(root, **how):
    made = open_or_create(str(root), **how)
    made.make_folder("vm1")
    with made.create("vm1/file") as file:
        file.write(b"secret")
    made.publish("vm1/published", b"secret")
    return made


CLOSED = {".": 0o700, "nbdpull.json": 0o600, "vm1": 0o700, "vm1/file": 0o600, "vm1/published": 0o600}


@pytest.mark.parametrize("mask", [0, 0o022, 0o027, 0o077])
def test_a_store_that_everybody_could_read(tmp_path, umask, mask):
    umask(mask)
    made = fill(tmp_path / "new" / "store")
    assert modes(tmp_path / "new" / "store") == CLOSED and (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert made.warnings() == []


def test_an_empty_folder_of_the_operator_keeps_its_mode(tmp_path, umask):
    """It may be a file system of its own. What is made in it is closed nevertheless."""
    tmp_path.chmod(0o755)
    made = fill(tmp_path)
    assert modes(tmp_path) == {**CLOSED, ".": 0o755} and made.warnings() == []


def a_group():
    """Return a group that this process may give its files to, other than its own if there is one."""
    number = 65534 if os.geteuid() == 0 else os.getgroups()[-1]
    return grp.getgrgid(number).gr_name, number


@pytest.mark.parametrize("there", [False, True])
def test_a_group_that_may_read(tmp_path, umask, there):
    root, (name, number) = tmp_path / "store", a_group()
    if there:
        root.mkdir(mode=0o755)
    fill(root, group=name)
    fill_again = open_or_create(str(root))  # a later run need not name it
    fill_again.make_folder("vm2")
    opened = {name: mode | (0o050 if mode & 0o100 else 0o040) for name, mode in CLOSED.items()}
    assert modes(root) == {**opened, "vm2": 0o750}
    assert {path.stat().st_gid for path in [root, *root.rglob("*")]} == {number}
    assert open_or_create(str(root), group=name).warnings() == []


def test_a_group_that_may_write_and_inherits(tmp_path, umask):
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2770)
    fill(root)
    assert modes(root) == {".": 0o2770, "nbdpull.json": 0o660, "vm1": 0o2770, "vm1/file": 0o660,
                           "vm1/published": 0o660}  # fmt: skip


@as_root
def test_a_group_that_the_writer_cannot_give_gets_nothing(tmp_path, umask):
    """Otherwise the files would be open to whatever group the writer has."""
    with unprivileged() as folder:
        (folder / "store").mkdir()
        os.setresuid(0, 0, 0)
        os.chown(folder / "store", 65534, 1)
        os.chmod(folder / "store", 0o770)
        os.setresuid(65534, 65534, 0)
        groups = os.getgroups()
        assert 1 not in groups
        fill(folder / "store")
        assert modes(folder / "store") == {**CLOSED, ".": 0o770}


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_what_root_adds_to_the_store_of_another(tmp_path, mode):
    """A finding that its owner cannot read would be lost."""
    root = tmp_path / "store"
    root.mkdir()
    os.chown(root, 65534, -1)
    root.chmod(mode)
    fill(root)
    assert {path.stat().st_uid for path in [root, *root.rglob("*")]} == {65534}
    assert modes(root) == {**CLOSED, ".": mode}


def test_a_group_for_a_store_that_exists_without_it(tmp_path):
    root, (name, _) = tmp_path / "store", a_group()
    fill(root)
    before = modes(root)
    with pytest.raises(errors.UsageError, match=f"chgrp -R {name} .*store && chmod -R g") as failed:
        open_or_create(str(root), group=name)
    assert modes(root) == before
    subprocess.run(str(failed.value).partition("to give it access: ")[2], shell=True, check=True)
    open_or_create(str(root), group=name)
    with pytest.raises(errors.UsageError, match="no group of that name"):
        open_or_create(str(tmp_path / "other"), group="no such")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def open_folder():
    """A directory that everybody can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_store_with_open_modes_is_reported_and_not_changed(open_folder, umask):
    """It was made by an earlier version, or copied under another umask; the command in the warning closes it."""
    root = open_folder / "store"
    fill(root)
    subprocess.run(["chmod", "-R", "a+rX", str(root)], check=True)
    before = modes(root)
    (warning,) = open_store(str(root)).warnings()
    assert "everybody" in warning and modes(root) == before
    with open_or_create(str(root)).create("vm1/later") as file:
        file.write(b"secret")
    assert modes(root)["vm1/later"] == 0o600
    subprocess.run(warning.partition("close it with ")[2], shell=True, check=True)
    assert open_store(str(root)).warnings() == [] and modes(root) == {**CLOSED, "vm1/later": 0o600}


def test_a_store_in_a_private_directory_is_not_open(open_folder):
    fill(open_folder / "closed" / "store")
    subprocess.run(["chmod", "-R", "a+rX", str(open_folder / "closed" / "store")], check=True)
    assert open_store(str(open_folder / "closed" / "store")).warnings() == []


# -- creating ---------------------------------------------------------------------------------------------------------


def test_a_link_is_not_followed(store, tmp_path):
    os.symlink(tmp_path / "elsewhere", store.path("file"))
    with pytest.raises(errors.OutputExists):
        store.create("file")
    with pytest.raises(errors.OutputExists):
        store.publish("file", b"x")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "number, kind",
    [
        (errno.ENOSPC, errors.OutputFull),
        (errno.EDQUOT, errors.OutputFull),
        (errno.EIO, errors.OutputError),
        (errno.EROFS, errors.OutputError),
        (errno.ESTALE, errors.OutputError),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "open", "mkdir"])
def test_errors_by_their_number(store, monkeypatch, call, number, kind):
    def attempt():
        if call == "mkdir":
            return store.make_folder("vm")
        with store.create("file") as file:
            file.write(b"x")

    monkeypatch.setattr(os, call, fails(number))
    with pytest.raises(errors.OutputError) as caught:
        attempt()
    assert type(caught.value) is kind
    assert os.strerror(number) in str(caught.value)
    assert store.path("vm" if call == "mkdir" else "file") in str(caught.value)
    assert caught.value.exit_code == 9


def test_errors_of_a_folder_fsync(store, monkeypatch):
    store.make_folder("vm")
    monkeypatch.setattr(os, "fsync", fails(errno.EIO))
    with pytest.raises(errors.OutputError, match="Input/output error"):
        store.sync_folder("vm")
    monkeypatch.setattr(os, "fsync", fails(errno.EINVAL))
    store.sync_folder("vm")  # there is none on some network file systems


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_after_an_error_a_file_is_never_sealed(store, monkeypatch, call):
    """The second fsync after a failed one reports success, although data is lost."""
    file = store.create("file")
    file.write(b"one")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails(errno.EIO))
        with pytest.raises(errors.OutputError):
            file.write(b"two")
            file.seal()
    for again in (file.seal, lambda: file.write(b"three")):
        with pytest.raises(errors.OutputError, match="earlier write failed"):
            again()
    file.close()


def test_short_writes_are_continued(store, monkeypatch):
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
        with store.create("file") as file:
            file.write(b"0123456789")
    assert store.read("file") == b"0123456789"
    assert file.size == 10


def test_a_file_left_by_an_exception_is_closed(store):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KeyError), store.create("file") as file:
        raise KeyError
    assert os.listdir("/proc/self/fd") == before
    file.close()


# -- publishing -------------------------------------------------------------------------------------------------------


def test_publish(store):
    store.publish("file", b"whole")
    assert store.read("file") == b"whole"
    assert sorted(os.listdir(store.root)) == ["file", "nbdpull.json"]


def test_nothing_is_published_twice(store):
    store.publish("file", b"first")
    with pytest.raises(errors.OutputExists):
        store.publish("file", b"second")
    assert store.read("file") == b"first"
    assert sorted(os.listdir(store.root)) == ["file", "nbdpull.json"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_publish_where_there_are_no_hard_links(store, monkeypatch, number):
    monkeypatch.setattr(os, "link", fails(number))
    test_nothing_is_published_twice(store)


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_what_could_not_be_published_is_not_there(store, monkeypatch, call):
    monkeypatch.setattr(os, call, fails(errno.EIO))
    with pytest.raises(errors.OutputError, match="Input/output error"):
        store.publish("file", b"data")
    assert os.listdir(store.root) == ["nbdpull.json"]


def test_what_is_published_is_durable_first(store, monkeypatch):
    """Its bytes are synced before it has its name, and the directory after that."""
    calls, fsync, link = [], os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.path.isdir(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "link", lambda *names, **how: (calls.append("link"), link(*names, **how)))
    store.publish("file", b"data")
    assert calls == [False, "link", True]


def test_a_new_store_is_durable_with_all_folders_above_it(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    open_or_create(str(tmp_path / "a/b/c"))
    assert [path for path in synced if os.path.isdir(path)] == [
        str(tmp_path / name) for name in ("", "a", "a/b", "a/b/c")
    ]


# -- reading ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_looked_at_is_not_taken_for_missing(store, monkeypatch):
    """A point whose directory gives EIO must not look like one that was never committed."""
    monkeypatch.setattr(os, "stat", fails(errno.EIO))
    with pytest.raises(errors.Damaged, match="file: cannot be read: Input/output error"):
        store.size("file")


def test_a_file_that_is_cut_while_it_is_open(store):
    store.publish("file", b"12345")
    with store.open_reader("file") as file:
        os.truncate(store.path("file"), 3)
        with pytest.raises(errors.Damaged, match="file: the file is cut short"):
            file.read(0, 5)


def test_a_reader_leaves_no_descriptor_open(store):
    store.make_folder("folder")
    before = os.listdir("/proc/self/fd")
    for name in ("none", "folder"):
        with pytest.raises(errors.Damaged):
            store.open_reader(name)
    store.publish("file", b"12345")
    store.open_reader("file").close()
    assert os.listdir("/proc/self/fd") == before


# -- the lock ---------------------------------------------------------------------------------------------------------


def test_one_writer_at_a_time(store):
    store.make_folder("vm")
    with store.locked("vm", "pull vm"):
        message = "another nbdpull writes to .*/vm; pull vm when it has ended"
        with pytest.raises(errors.Busy, match=message), store.locked("vm", "pull vm"):
            raise AssertionError("two of them")
        store.make_folder("other")
        with store.locked("other", "pull other"):
            pass
    with store.locked("vm", "pull vm"):
        pass


def test_the_lock_goes_with_its_process(store):
    store.make_folder("vm")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; from nbdpull.repository.marker import open_store\n"
         "with open_store(sys.argv[1]).locked('vm', ''):\n print('held', flush=True); sys.stdin.read()", store.root],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=package_environment(),
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(errors.Busy), store.locked("vm", "pull vm"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with store.locked("vm", "pull vm"):
        pass


def test_a_file_system_without_locks(store, monkeypatch):
    """Nobody is locked out, and the user is warned: only he can keep a pull and a prune apart."""
    assert store.warnings() == []
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    with store.locked("", "pull"):
        pass
    assert store.warnings() == [
        f"the file system of {store.root} has no locks: while a pull of a domain runs, let no other run remove or "
        "prune points of that domain there"
    ]


# -- a full disk ------------------------------------------------------------------------------------------------------


@as_root
def test_a_full_disk(tmp_path):
    with small_disk(tmp_path / "small", MIB) as folder:
        store = open_or_create(str(folder / "store"))
        message = "No space left on device; free space"
        with pytest.raises(errors.OutputFull, match=message) as caught, store.create("big") as file:
            for _ in range(20):
                file.write(b"x" * 100_000)
        assert caught.value.exit_code == 9
        with pytest.raises(errors.OutputFull):
            store.publish("manifest.json", b"y" * 100_000)
        assert sorted(os.listdir(store.root)) == ["big", "nbdpull.json"]
        os.unlink(store.path("big"))
        store.publish("manifest.json", b"y" * 100_000)


def test_translated_leaves_our_own_errors_alone():
    with pytest.raises(errors.Busy), translated("write", "x"):
        raise errors.Busy("x")
