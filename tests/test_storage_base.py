"""What storage/base.py promises, for every store: the directory, the one in memory, and the object store."""

import contextlib
import hashlib
import inspect
import random

import numpy
import pytest
from memory_store import MemoryReader, MemoryStore, MemoryWriter
from stores import KIB, MIB, buffers

from nbdpull.core import errors, extents
from nbdpull.format import directory, reader, writer
from nbdpull.format.manifest import DiskEntry
from nbdpull.storage import base
from nbdpull.storage.directory import DirectoryReader, DirectoryStore, DirectoryWriter
from nbdpull.storage.s3 import S3Reader, S3Store, S3Writer

POINT = "20261122T194500Z-7f3a9c04"

IN_FOLDERS = ["directory", "memory"]  # where a folder is something by itself


@pytest.fixture(params=[*IN_FOLDERS, pytest.param("objects", marks=pytest.mark.e2e),
                         pytest.param("ceph", marks=pytest.mark.e2e)])  # fmt: skip
def store(request):
    return opened(request)


@pytest.fixture(params=IN_FOLDERS)
def store_in_folders(request):
    return opened(request)


def opened(request):
    if request.param == "objects":
        return S3Store(request.getfixturevalue("object_store").url)
    if request.param == "ceph":
        return S3Store(request.getfixturevalue("rgw_store").url)
    return DirectoryStore(str(request.getfixturevalue("tmp_path"))) if request.param == "directory" else MemoryStore()


@pytest.mark.parametrize(
    "promised, kept",
    [
        (base.Store, DirectoryStore),
        (base.Reader, DirectoryReader),
        (base.Writer, DirectoryWriter),
        (base.Store, MemoryStore),
        (base.Reader, MemoryReader),
        (base.Writer, MemoryWriter),
        (base.Store, S3Store),
        (base.Reader, S3Reader),
        (base.Writer, S3Writer),
    ],
)
def test_each_has_every_call(promised, kept):
    calls = {name: call for name, call in vars(promised).items() if inspect.isfunction(call) and name[0] != "_"}
    assert {"close"} <= set(calls) or {"publish", "open_reader"} <= set(calls)
    for name, call in calls.items():
        assert list(inspect.signature(getattr(kept, name)).parameters) == list(inspect.signature(call).parameters)


def test_several_are_done_in_order(store):
    assert [*store.several(lambda number: number * number, iter(range(100)))] == [n * n for n in range(100)]
    assert [*store.several(str, [])] == []

    def fails(number):
        if number in (7, 60):
            raise errors.Damaged(f"file {number}")
        return number

    found = store.several(fails, range(100))
    assert [next(found) for _ in range(7)] == [*range(7)]
    with pytest.raises(errors.Damaged, match="file 7"):
        next(found)


# -- creating ---------------------------------------------------------------------------------------------------------


def test_what_is_created_is_read(store):
    store.make_folder("vm")
    with store.create("vm/file") as file:
        file.write(b"one ")
        file.write(memoryview(b"two"))
    assert (file.path, file.size) == ("vm/file", 7)
    assert file.sha256() == store.sha256("vm/file") == hashlib.sha256(b"one two").hexdigest()
    assert store.read("vm/file") == b"one two"
    assert store.read_range("vm/file", 4, 2) == b"tw"
    assert store.size("vm/file") == 7


@pytest.mark.parametrize("first", ["create", "publish"])
@pytest.mark.parametrize("second", ["create", "publish"])
def test_nothing_is_made_twice(store, first, second):
    make(store, first, "file", b"first")
    with pytest.raises(errors.OutputExists, match="nothing is ever overwritten"):
        make(store, second, "file", b"second")
    assert store.read("file") == b"first"
    assert store.files() == ["file"]


def make(store, how, path, data):
    if how == "publish":
        return store.publish(path, data)
    with store.create(path) as file:
        file.write(data)


def test_two_writers_of_one_file(store):
    """The second one gets an error: at once, or when it seals."""
    with contextlib.ExitStack() as later:
        with store.create("file") as file:
            try:
                other = later.enter_context(contextlib.closing(store.create("file")))
            except errors.OutputExists:
                other = None
            file.write(b"first")
        if other is not None:
            other.write(b"second")
            with pytest.raises(errors.OutputExists):
                other.seal()
    assert store.read("file") == b"first"


def test_in_folders_the_second_writer_learns_of_it_at_once(store_in_folders):
    with store_in_folders.create("file"), pytest.raises(errors.OutputExists):
        store_in_folders.create("file")


def test_a_file_that_is_sealed_or_closed_takes_no_more(store):
    with store.create("sealed") as sealed:
        sealed.write(b"whole")
    closed = store.create("closed")
    closed.write(b"half")
    closed.close()
    closed.close()
    for file in (sealed, closed):
        for attempt in (lambda file=file: file.write(b"more"), file.seal):
            with pytest.raises(errors.OutputError, match="it is closed, or an earlier write failed"):
                attempt()
    assert store.read("sealed") == b"whole"


def test_what_an_exception_leaves_is_not_sealed(store):
    with pytest.raises(KeyError), store.create("file") as file:
        file.write(b"half")
        raise KeyError
    with pytest.raises(errors.OutputError):
        file.seal()


def test_nothing_is_made_where_there_is_no_folder(store_in_folders):
    store = store_in_folders
    for attempt in (store.create, store.make_folder, lambda path: store.publish(path, b"")):
        with pytest.raises(errors.OutputError, match="there is no directory .*none$"):
            attempt("none/file")


def test_folders(store):
    store.make_folder("vm")
    store.make_folder("vm")
    store.make_folder("vm/point", fresh=True)
    store.publish("vm/point/file", b"")
    with pytest.raises(errors.OutputExists, match="vm/point: it exists already"):
        store.make_folder("vm/point", fresh=True)
    store.publish("vm/file", b"")
    assert (store.folders(), store.folders("vm"), store.folders("none")) == (["vm"], ["point"], [])
    assert (store.files(), store.files("vm"), store.files("none")) == ([], ["file"], [])


def test_folders_in_which_there_is_nothing(store_in_folders):
    store = store_in_folders
    store.make_folder("vm")
    store.make_folder("vm/point", fresh=True)
    with pytest.raises(errors.OutputExists):
        store.make_folder("vm/point", fresh=True)
    store.publish("vm/file", b"")
    with pytest.raises(errors.OutputExists):
        store.make_folder("vm/file")
    assert (store.folders(), store.folders("vm"), store.folders("none")) == (["vm"], ["point"], [])
    assert (store.files(), store.files("vm"), store.files("none")) == ([], ["file"], [])


@pytest.fixture(params=["objects", "ceph"])
def objects(request):
    return opened(request)


@pytest.mark.e2e
def test_what_changed_meanwhile_is_not_replaced(objects):
    """In a store whose lock keeps nobody out."""
    store = objects
    store.publish("file", b"one")
    store.replace("file", b"two", b"one")
    for was in (b"one", b"three"):
        with pytest.raises(errors.Busy, match="file: another nbdpull changed it meanwhile: try again"):
            store.replace("file", b"four", was)
    assert store.read("file") == b"two"
    with pytest.raises(errors.Busy):
        store.replace("none", b"two", b"one")
    assert store.find("none") is None


# -- removing ---------------------------------------------------------------------------------------------------------


def test_a_removed_folder_takes_nothing_else_with_it(store):
    for folder in ("vm", "vm/point", "vm/point2", "vm2"):
        store.make_folder(folder)
        store.publish(f"{folder}/file", b"")
    store.remove_folder("vm/point")
    with store.looking(""):  # a SeaweedFS shows a while that there was a folder
        assert (store.folders(), store.folders("vm")) == (["vm", "vm2"], ["point2"])
    store.remove_folder("vm")
    with store.looking(""):
        assert (store.folders(), store.files("vm2")) == (["vm2"], ["file"])


def test_a_folder_that_has_become_empty_is_not_there(store):
    """Whatever a listing shows for a while."""
    store.make_folder("vm")
    store.publish("vm/file", b"")
    assert store.holds("vm")
    store.remove_folder("vm")
    assert not store.holds("vm")


def test_what_is_removed_may_be_made_again(store):
    store.publish("file", b"first")
    store.remove_file("file")
    store.remove_file("file")
    assert store.size("file") is None
    store.publish("file", b"second")
    assert store.read("file") == b"second"


def test_a_file_that_must_go(store):
    store.make_folder("vm")
    store.publish("vm/file", b"1")
    store.delete("vm/file")
    store.delete("vm/file")
    assert store.names("vm") == [] and not store.holds("vm/file")


def test_renamed_files(store):
    store.make_folder("vm")
    store.publish("vm/one", b"1")
    store.publish("vm/other", b"2")
    store.rename("vm/one", "vm/new")
    assert (store.names("vm"), store.read("vm/new")) == (["new", "other"], b"1")
    with pytest.raises(errors.OutputExists):
        store.rename("vm/new", "vm/other")
    with pytest.raises(errors.OutputError):
        store.rename("vm/none", "vm/newer")
    assert (store.read("vm/new"), store.read("vm/other")) == (b"1", b"2")


def test_what_takes_the_place_of_another(store):
    store.make_folder("vm")
    store.replace("vm/file", b"first")
    store.replace("vm/file", b"second")
    assert store.read("vm/file") == b"second"
    with store.replacing("vm/file") as file:
        file.write(b"third")
        assert store.read("vm/file") == b"second"
    with pytest.raises(KeyError), store.replacing("vm/file") as file:
        file.write(b"fourth")
        raise KeyError
    assert (store.names("vm"), store.read("vm/file")) == (["file"], b"third")


def test_a_writer_holds_a_folder(store_in_folders):
    store = store_in_folders
    store.make_folder("vm")
    store.publish("vm/file", b"")
    busy = pytest.raises(errors.Busy, match="another nbdpull writes to .*vm; pull vm when it has ended")
    with store.locked("vm", "pull vm"), busy, store.locked("vm", "pull vm"):
        pass
    with store.locked("vm", "pull vm"), store.locked("", "try again"):
        pass


# -- looking ----------------------------------------------------------------------------------------------------------


def test_everything_in_a_directory(store):
    store.make_folder("vm")
    store.make_folder("vm/point")
    store.publish("vm/point/file", b"")
    store.publish("vm/file", b"")
    assert (store.names("vm"), store.names("none")) == (["file", "point"], [])
    assert [store.holds(each) for each in ("vm", "vm/file", "vm/none", "none/file")] == [True, True, False, False]


@pytest.mark.parametrize("folder", ["", "vm", "vm/point"])
def test_answers_during_an_open_listing(store, folder):
    for each in ("vm", "vm/point", "vm2"):
        store.make_folder(each)
    for path in ("file", "vm/file", "vm/point/file", "vm/point.json", "vm2/file"):
        store.publish(path, path.encode())
    asked = [(call, path) for path in ("vm", "vm/point", "vm2", "none") for call in ("names", "folders", "files")]
    asked += [(call, path) for path in ("vm/file", "vm/none", "vm/point/file") for call in ("size", "find", "holds")]
    asked += [("holds", path) for path in ("vm", "vm/point", "vm/poi", "none")]
    before = [getattr(store, call)(path) for call, path in asked]
    with store.looking(folder):
        assert [getattr(store, call)(path) for call, path in asked] == before
        store.publish("vm/point/new", b"1")
        store.delete("vm/point/file")
        assert (store.files("vm/point"), store.find("vm/point/new"), store.size("vm/point/file")) == (
            ["new"],
            b"1",
            None,
        )


def test_a_directory_is_removed_only_as_it_was_listed(object_store):
    """Otherwise a sweep would remove what a copy has made there since the listing."""
    store, other = S3Store(object_store.url), S3Store(object_store.url)
    store.publish("vm/point/old", b"")
    store.publish("vm/points", b"")
    with store.looking("vm"):
        other.publish("vm/point/new", b"")
        store.remove_folder("vm/point")
    assert (other.files("vm/point"), other.files("vm")) == (["new"], ["points"])


def test_how_long_something_is_there(store):
    store.publish("file", b"")
    assert 0 <= store.seconds_since_change("file") < 60
    with pytest.raises(errors.OutputError):
        store.seconds_since_change("none")


def test_where_a_folder_is(store):
    store.make_folder("vm")
    store.publish("vm/file", b"")
    assert store.is_same("vm", f"{store.root}/vm") is True
    assert not store.is_same("vm", f"{store.root}/none")


def test_a_file_is_made_durable_again(store):
    store.publish("file", b"1")
    store.make_durable("file")
    store.sync_folder("")
    assert store.read("file") == b"1"
    assert store.warnings() == []


# -- reading ----------------------------------------------------------------------------------------------------------


def test_what_is_missing_or_short_is_damaged(store):
    store.publish("file", b"12345")
    assert (store.find("file"), store.find("none")) == (b"12345", None)
    for attempt in (store.read, store.open_reader, store.sha256, lambda path: store.read_range(path, 0, 1)):
        with pytest.raises(errors.Damaged, match="none: the file is missing"):
            attempt("none")
    with pytest.raises(errors.Damaged, match="file: the file is cut short"):
        store.read_range("file", 3, 3)
    assert store.size("none") is None
    assert store.size("file/none") is None
    assert store.size("") is None  # a folder is no file


def test_a_folder_is_no_file(store_in_folders):
    store = store_in_folders
    store.make_folder("vm")
    for attempt in (store.read, store.sha256, store.open_reader, store.size):
        with pytest.raises(errors.Damaged, match="vm: cannot be read: Is a directory"):
            attempt("vm")


def test_a_file_is_no_larger_than_its_reader_takes(store):
    store.publish("file", bytes(100))
    assert store.read("file", 100) == bytes(100)
    with pytest.raises(errors.Damaged, match="file: the file has more than 99 bytes"):
        store.read("file", 99)


def test_open_reader(store):
    store.publish("file", b"12345")
    with store.open_reader("file") as file:
        assert (file.size, file.read(0, 5), file.read(3, 2), file.read(5, 0)) == (5, b"12345", b"45", b"")
        with pytest.raises(errors.Damaged, match="file: the file is cut short"):
            file.read(3, 3)


def test_a_digest_can_be_stopped(store):
    store.publish("file", bytes(100))

    def stop():
        raise KeyError

    with pytest.raises(KeyError):
        store.sha256("file", stop)


# -- both alike -------------------------------------------------------------------------------------------------------

PATHS = ("a", "b", "a/a", "a/b", "b/a", "a/a/b", "c/a")
CALLS = {
    "make_folder": lambda store, path, chance: store.make_folder(path, chance.random() < 0.3),
    "create": lambda store, path, chance: make(store, "create", path, chance.randbytes(chance.randrange(20))),
    "publish": lambda store, path, chance: store.publish(path, chance.randbytes(chance.randrange(20))),
    "read": lambda store, path, chance: store.read(path, chance.randrange(20)),
    "read_range": lambda store, path, chance: store.read_range(path, chance.randrange(10), chance.randrange(10)),
    "size": lambda store, path, chance: store.size(path),
    "sha256": lambda store, path, chance: store.sha256(path),
    "folders": lambda store, path, chance: store.folders(path),
    "files": lambda store, path, chance: store.files(path),
    "remove_file": lambda store, path, chance: store.remove_file(path),
    "remove_folder": lambda store, path, chance: store.remove_folder(path),
}


def outcome(store, name, path, seed, calls=CALLS):
    try:
        return calls[name](store, path, random.Random(seed))
    except errors.NbdpullError as error:
        return type(error)


@pytest.mark.parametrize("seed", range(20))
def test_any_calls_end_alike_in_every_store(tmp_path, seed):
    stores, chance = [DirectoryStore(str(tmp_path)), MemoryStore()], random.Random(seed)
    done = []
    for _ in range(60):
        done.append((chance.choice([*CALLS, "make_folder", "publish"]), chance.choice(PATHS), chance.random()))
        first, second = (outcome(store, *done[-1]) for store in stores)
        assert first == second, done


ALONE = ("a/1", "a/2", "b/1", "b/c/1")  # no file where another path has a folder
MORE_CALLS = {
    **{name: call for name, call in CALLS.items() if not name.endswith(("folder", "folders"))},
    "find": lambda store, path, chance: store.find(path),
    "replace": lambda store, path, chance: store.replace(path, chance.randbytes(9)),
    "rename": lambda store, path, chance: store.rename(path, f"a/{chance.randrange(1, 4)}"),
    "delete": lambda store, path, chance: store.delete(path),
    "holds": lambda store, path, chance: store.holds(path),
    "files": lambda store, path, chance: store.files(path.rpartition("/")[0]),
    "names": lambda store, path, chance: set(store.names(path.rpartition("/")[0])) - {"c"},  # it may be empty
}


@pytest.mark.e2e
@pytest.mark.parametrize("seed", range(4))
def test_any_calls_end_alike_in_an_object_store(object_store, seed):
    stores, chance = [S3Store(object_store.url), MemoryStore()], random.Random(seed)
    for folder in ("a", "b", "b/c"):
        stores[1].make_folder(folder)
    done = []
    for _ in range(150):
        done.append((chance.choice([*MORE_CALLS, "publish"]), chance.choice(ALONE), chance.random()))
        with stores[0].looking("b") if chance.random() < 0.3 else contextlib.nullcontext():
            first, second = (outcome(store, *done[-1], MORE_CALLS) for store in stores)
        assert first == second, done


def test_a_disk_is_read_as_it_was_written(store):
    """The format needs nothing of a directory."""
    data = numpy.frombuffer(random.Random(1).randbytes(MIB), "u1")
    store.make_folder("vm")
    store.make_folder(f"vm/{POINT}")
    pieces, encoder = extents.cut(extents.of([(0, MIB, extents.DATA)]), 64 * KIB), writer.Encoder(1)
    about = writer.Disk("vm", POINT, "vda", MIB, True)
    with writer.DiskWriter(store, about, chunk_size=256 * KIB) as disk:
        for batch in extents.batches(pieces, 64 * KIB, 1 << 10):
            disk.add(encoder.encode(batch, buffers(data, batch)))
        made, files = disk.close()
    found = directory.Directory(store, "vm", DiskEntry("vda", MIB, "full", "", "", True, made, 0, 0, 0, 0))
    assert {each.path: each for each in found.files} == {each.path: each for each in files}
    with reader.FrameReader(store, "vm", found.files) as frames:
        assert b"".join(map(frames.read, found.window(0).flat())) == data.tobytes()
    assert len(found.chunks) == 4 and len(found.indexes) == 1
    for chunk in found.chunks:
        page = reader.chunk_records(store, f"vm/{chunk.path}", chunk.size, "vda")
        assert page.names == [chunk.path] and len(page.records) == 4
    assert store.files(f"vm/{POINT}") == sorted(each.path.rpartition("/")[2] for each in [made, *files])
