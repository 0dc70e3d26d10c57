"""Access below a root: what is not a plain file or directory is refused, and nothing is reached, created or removed
through a link."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import strange

from nbdpull.core import errors
from nbdpull.repository.marker import open_or_create, uuid_of
from nbdpull.storage import beneath


@pytest.fixture
def store(tmp_path):
    """A store with a directory `vm`, beside a directory `elsewhere` that holds a file."""
    store = open_or_create(str(tmp_path / "store"))
    store.make_folder("vm")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("secret")
    (tmp_path / "elsewhere" / "inner").mkdir()
    (tmp_path / "elsewhere" / "inner" / "file").write_text("secret")
    return store


def outside(tmp_path):
    return sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "elsewhere").rglob("*"))


@pytest.mark.timeout_seconds(20)
@pytest.mark.parametrize("kind", strange.FILES)
def test_special_files_are_not_opened(store, tmp_path, kind):
    path = tmp_path / "store" / "vm" / "file"
    strange.FILES[kind](path)
    for attempt in (store.read, store.size, store.sha256, store.open_reader, lambda path: store.read_range(path, 0, 1)):
        with pytest.raises(errors.Damaged, match=r"vm/file: cannot be read: ([iI]s|it is) a") as caught:
            attempt("vm/file")
        assert "\n" not in str(caught.value)
    assert store.files("vm") == []
    for attempt in (store.create, store.reopen, lambda path: store.publish(path, b"x")):
        with pytest.raises(errors.OutputError):
            attempt("vm/file")
    assert sorted(os.listdir(tmp_path / "store" / "vm")) == ["file"]


def test_a_device_is_not_even_opened(store, tmp_path, monkeypatch):
    """A tape would rewind, a watchdog would start to count."""
    os.mkfifo(tmp_path / "store" / "vm" / "file")
    opened, real = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **how: (opened.append(path), real(path, *rest, **how))[1])
    with pytest.raises(errors.Damaged):
        store.read("vm/file")
    assert opened == [store.root, "vm"]


@pytest.mark.parametrize("swapped", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")], ids=["FIFO", "link"])
@pytest.mark.timeout_seconds(20)
def test_a_file_that_is_swapped_after_the_check(store, tmp_path, monkeypatch, swapped):
    store.publish("vm/file", b"x")
    path, look = tmp_path / "store" / "vm" / "file", beneath.status

    def swap(*where):
        found = look(*where)
        path.unlink()
        swapped(path)
        return found

    monkeypatch.setattr(beneath, "status", swap)
    with pytest.raises(errors.Damaged, match="cannot be read"):
        store.read("vm/file")


def test_no_folder_is_reached_by_a_link(store, tmp_path):
    """Neither the directory itself nor one above it is a link; the root may be one, as the user named it."""
    (tmp_path / "store" / "vm" / "link").symlink_to(tmp_path / "elsewhere")
    before = outside(tmp_path)
    for folder in ("vm/link", "vm/link/inner"):
        for attempt in (store.read, store.size, store.sha256, store.open_reader):
            with pytest.raises(errors.Damaged, match="it is a symbolic link, and none is followed in a store"):
                attempt(f"{folder}/file")
        for attempt in (store.folders, store.names):
            with pytest.raises(errors.Damaged, match="symbolic link"):
                attempt(folder)
        for attempt in (store.create, store.reopen, store.make_folder, lambda path: store.publish(path, b"x")):
            with pytest.raises(errors.OutputError, match="symbolic link"):
                attempt(f"{folder}/new")
        for attempt in (store.sync_folder, store.make_folder, lambda path: store.locked(path, "").__enter__()):
            with pytest.raises(errors.OutputError, match="symbolic link"):
                attempt(folder)
        assert store.files(folder) == [] and not store.holds(f"{folder}/file")
        store.remove_file(f"{folder}/file")
        store.remove_folder(f"{folder}/inner")
    assert outside(tmp_path) == before
    (tmp_path / "short").symlink_to(store.root)
    assert uuid_of(open_or_create(str(tmp_path / "short"))) == uuid_of(store)


def test_no_path_leads_up(store, tmp_path):
    for path in ("../elsewhere/file", "vm/../../elsewhere/file", "./vm/../../elsewhere/file"):
        with pytest.raises(errors.Damaged, match="is not a name"):
            store.read(path)
        with pytest.raises(errors.OutputError, match="is not a name"):
            store.create(f"{path}.new")
        store.remove_file(path)
        store.remove_folder(path.rpartition("/")[0])
    assert (tmp_path / "elsewhere" / "file").read_text() == "secret"


def test_links_are_named_as_folders(store, tmp_path):
    """So that whoever looks into one gets an error; otherwise it would seem absent."""
    (tmp_path / "store" / "vm" / "link").symlink_to("/nonexistent")
    store.make_folder("vm/folder")
    assert store.folders("vm") == ["folder", "link"]


def test_a_removed_folder_takes_nothing_else_with_it(store, tmp_path):
    folder = tmp_path / "store" / "vm" / "old"
    (folder / "inner").mkdir(parents=True)
    (folder / "file").write_text("x")
    (folder / "inner" / "file").write_text("x")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "fifo")
    before = outside(tmp_path)
    store.remove_folder("vm/old")
    assert store.folders("vm") == [] and outside(tmp_path) == before


def test_a_deep_folder_is_no_endless_descent(store, tmp_path):
    """What is deeper than a run can have made remains: it is not ours."""
    deep = os.open(tmp_path / "store" / "vm", os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d", dir_fd=deep)
        inner = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    store.remove_folder("vm/d")
    assert store.folders("vm") == ["d"]


def test_a_file_is_no_larger_than_its_reader_takes(store):
    store.publish("vm/file", b"12345")
    assert store.read("vm/file", 5) == b"12345"
    with pytest.raises(errors.Damaged, match="vm/file: the file has more than 4 bytes"):
        store.read("vm/file", 4)
    os.truncate(store.path("vm/file"), 1 << 40)
    with pytest.raises(errors.Damaged, match="vm/file: the file has more than 67108864 bytes"):
        store.read("vm/file")


def test_a_digest_can_be_stopped(store):
    """A sparse file of any size costs an attacker nothing."""

    def check():
        raise errors.Interrupted(2)

    store.publish("vm/file", b"")
    os.truncate(store.path("vm/file"), 1 << 43)
    with pytest.raises(errors.Interrupted):
        store.sha256("vm/file", check)


def test_a_folder_that_is_held(store, tmp_path, monkeypatch):
    """It is opened once; what is in it is not reached through a link, either. Nothing is left open."""
    store.make_folder("vm/a")
    store.publish("vm/a/file", b"x")
    (tmp_path / "store" / "vm" / "link").symlink_to(tmp_path / "elsewhere")
    before, opened, real = os.listdir("/proc/self/fd"), [], os.open
    with store.looking("vm"):
        monkeypatch.setattr(os, "open", lambda path, *rest, **how: (opened.append(path), real(path, *rest, **how))[1])
        for path in ("vm/link/file", "vm/link/inner/file"):
            for attempt in (store.read, store.size):
                with pytest.raises(errors.Damaged, match="symbolic link"):
                    attempt(path)
        assert store.size("vm/a/none") is None and store.find("vm/a/none") is None
        assert (store.read("vm/a/file"), store.size("vm/a/file")) == (b"x", 1) and store.root not in opened
        with store.looking("vm/a"), store.looking("none"):
            assert store.read("vm/a/file") == b"x"
            with ThreadPoolExecutor(1) as other:
                assert other.submit(store.read, "vm/a/file").result() == b"x"
        assert store.read("nbdpull.json") and store.root in opened
    assert os.listdir("/proc/self/fd") == before


def test_a_folder_is_held_open_for_all_threads(store, monkeypatch):
    """Who looks at a series reads it in several threads, and each file was reached from the root."""
    store.make_folder("vm/point")
    store.publish("vm/point/file", b"x")
    opened, real = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **how: (opened.append(path), real(path, *rest, **how))[1])
    with store.looking("vm"), ThreadPoolExecutor(1) as other:
        del opened[:]
        assert other.submit(store.read, "vm/point/file").result() == b"x"
    assert opened == ["point", "file"]


def test_a_folder_is_held_until_the_last_thread_is_done_with_it(store, tmp_path):
    """Its descriptor could otherwise be that of another folder by then."""
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "store" / "vm" / "file").write_text("x")
    with store.looking("vm"):
        held, rest = store._begun("vm/file")
    with ThreadPoolExecutor(1) as other:
        descriptor = other.submit(beneath.open_file, store.root, rest, os.O_RDONLY, held=held).result()
    assert os.read(descriptor, 2) == b"x"
    os.close(descriptor)
    del held
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_cannot_be_held(store):
    with store.looking("none"):
        assert store.find("none/file") is None
    assert store._begun("vm/file") == (None, "vm/file")
