"""Moved tables, and frames that are found through them."""

import random

import numpy
import pytest
from memory_store import MemoryStore
from stores import KIB

from nbdpull.core import errors, extents
from nbdpull.format import moved, pages, reader
from nbdpull.format.manifest import FileEntry

POINT, OLD, NEW, NEWER = "vm1", *(f"2026112{day}T000000Z-00000a/vda.0000.zst" for day in (1, 2, 3))


def entry(path, size=1 << 30):
    return FileEntry(path, size, f"{size:064x}")


def table(rng, count, files=3):
    """Return a table of random moves, and the same moves as {(position, stored): Place}."""
    new = [entry(f"2026112{day}T000000Z-00000a/vda.0000.zst") for day in range(2, 2 + files)]
    moves, at, reported = numpy.zeros(count, moved.MOVE), 0, {}
    for move in moves:
        position, stored = at + rng.randrange(1000), rng.randrange(1, 5000)
        number, to = rng.randrange(files), rng.randrange(1 << 29)
        move["position"], move["stored"], move["to"], move["file"] = position, stored, to, number + 1
        reported[position, stored] = (new[number].path, to)
        at = position + stored
    return moved.Table(entry(OLD), new, moves), reported


@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_table_says_where_each_frame_is(count):
    made, places = table(random.Random(count), count)
    found = moved.decode(moved.encode(made), made.old)
    assert (found.old, found.files) == (made.old, made.files)
    for (position, stored), place in places.items():
        assert found.place(position, stored) == place
        assert found.place(position + 1, stored) is found.place(position, stored + 1) is None
    assert found.place(1 << 29, 5) is None
    by_file = {
        file.path: sum(size for (_, size), place in places.items() if place[0] == file.path) for file in made.files
    }
    assert {file.path: found.bytes_in(file.path) for file in made.files} == by_file
    _, live, _ = pages.split(pages.decompressed(moved.encode(made)[:-32], 1 << 20), moved.MOVE)
    assert live.tolist() == [sum(by_file.values()), *by_file.values()]


@pytest.mark.parametrize("seed", range(5))
def test_tables_that_are_joined_lead_to_all(seed):
    """Two stores have moved different frames of a file, and some frames twice."""
    rng = random.Random(seed)
    every, places = table(rng, 60)
    parts = [numpy.array([rng.random() < 0.5 for _ in range(60)]) for _ in range(2)]
    one, other = (moved.Table(every.old, every.files, every.moves[part]) for part in parts)
    elsewhere = [entry(f"2026112{day}T000000Z-00000b/vda.0000.zst") for day in range(2, 5)]
    other = moved.Table(every.old, elsewhere, other.moves)
    found = moved.joined(one, other)
    assert moved.decode(moved.encode(found), every.old).files == found.files
    for (position, stored), mine, its in zip(places, *(part.tolist() for part in parts)):
        first, second = one.place(position, stored), other.place(position, stored)
        assert (first is None, second is None) == (not mine, not its)
        assert found.place(position, stored) == (first or second)
    assert moved.joined(found, other) is found and moved.joined(found, one) is found
    assert len(moved.joined(moved.Table(every.old, [], every.moves[:0]), other).moves) == len(other.moves)


@pytest.mark.parametrize("old", [entry(OLD, 5), entry(NEW), FileEntry(OLD, 1 << 30, "0" * 64)])
def test_a_table_stands_for_no_other_file(old):
    made, _ = table(random.Random(1), 3)
    with pytest.raises(ValueError, match="another file"):
        moved.decode(moved.encode(made), old)


class Frames:
    """A store with two frames in OLD; `record` is that of the second."""

    def __init__(self):
        self.store, self.data = MemoryStore(), [bytes([65 + number]) * KIB for number in range(2)]
        self.frames = [pages.compressed(data) for data in self.data]
        for folder in (POINT, *(f"{POINT}/{path.partition('/')[0]}" for path in (OLD, NEW, NEWER))):
            self.store.make_folder(folder)
        self.old = self.put(OLD, b"".join(self.frames))
        self.record = {"offset": 0, "length": KIB, "chunk": 0, "kind": extents.DATA, "raw": KIB,
                       "position": len(self.frames[0]), "stored": len(self.frames[1]),
                       "digest": numpy.void(reader.digest(self.data[1]))}  # fmt: skip

    def put(self, path, data):
        self.store.publish(f"{POINT}/{path}", data)
        return FileEntry(path, len(data), self.store.sha256(f"{POINT}/{path}"))

    def move(self, path, before=None):
        """Move the second frame to another file; its old file is removed."""
        new = self.put(path, b"#" * 50 + self.frames[1])
        moves = numpy.zeros(1, moved.MOVE)
        moves["position"], moves["to"], moves["stored"], moves["file"] = (
            self.record["position"],
            50,
            len(self.frames[1]),
            1,
        )
        self.store.remove_file(f"{POINT}/{moved.path_of(OLD)}")
        self.put(moved.path_of(OLD), moved.encode(moved.Table(self.old, [new], moves)))
        self.store.remove_file(f"{POINT}/{before or OLD}")

    def reader(self):
        return reader.FrameReader(self.store, POINT, [self.old])


def test_a_frame_is_found_wherever_it_was_moved_meanwhile():
    """A reader that has a file open, or has read a table, continues: the file may be removed, and then the new one,
    too."""
    vm = Frames()
    with vm.reader() as begun, vm.reader() as later:
        vm.move(NEW)
        assert begun.read(vm.record) == later.read(vm.record) == vm.data[1]
        assert begun.stored(vm.record) == vm.frames[1]
        begun.close()
        vm.move(NEWER, before=NEW)
        assert begun.read(vm.record) == vm.data[1]


def test_a_frame_that_was_not_moved_is_missing():
    vm = Frames()
    vm.move(NEW)
    with vm.reader() as frames, pytest.raises(errors.Damaged, match=r"\.moved: a frame that is needed was not moved"):
        frames.read({**vm.record, "position": 0, "stored": len(vm.frames[0])})


@pytest.mark.parametrize("gone", [OLD, NEW])
def test_a_file_without_a_table_is_missing(gone):
    vm = Frames()
    if gone == NEW:
        vm.move(NEW)
    vm.store.remove_file(f"{POINT}/{gone}")
    with vm.reader() as frames, pytest.raises(errors.Damaged, match=f"{gone}: the file is missing"):
        frames.read(vm.record)


def test_a_moved_frame_is_proved_as_any():
    vm = Frames()
    vm.move(NEW)
    vm.store.remove_file(f"{POINT}/{NEW}")
    vm.put(NEW, b"#" * 50 + pages.compressed(b"x" * KIB))
    for read in (vm.reader().read, vm.reader().stored):
        with pytest.raises(errors.Damaged, match=f"{NEW}: a frame is not what was stored"):
            read(vm.record)
