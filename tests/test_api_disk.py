"""A disk of an open backup: what its caller may ask, and what it answers to anything else."""

import array
import ctypes
import mmap
import os
import random
from contextlib import contextmanager

import numpy
import pytest

import nbdpull
from nbdpull.core import errors, extents
from nbdpull.definitions.domain_xml import Disk as Facts

SIZE = 4096
FACTS = Facts("vda", "file", "", "qcow2", "disk", "virtio", False, False, False, False, SIZE)
DATA = bytes(range(256)) * 16


class Source:
    """The bytes of DATA; the first half of it is an extent, and what follows is another one."""

    def __init__(self):
        self.asked, self.at_a_read = [], lambda: None

    def extents(self, start):
        for offset, kind in ((0, extents.DATA), (SIZE // 2, extents.ZERO)):
            yield extents.of([(offset, SIZE // 2, kind)])

    def read_into(self, offset, view):
        self.asked.append((offset, len(view)))
        self.at_a_read()
        view[:] = DATA[offset : offset + len(view)]

    @contextmanager
    def reading(self):
        yield self

    def read_batch(self, ranges):
        self.asked += ranges
        self.at_a_read()
        return [DATA[offset : offset + length] for offset, length in ranges]


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def disk(source):
    return nbdpull.Disk(FACTS, "full", "requested", source)


def ways(disk):
    """Return both ways to read, each called with (offset, buffer)."""
    return disk.read_into, lambda offset, buffer: disk.read_many([(0, bytearray(8)), (offset, buffer)])


def released():
    view = memoryview(bytearray(8))
    view.release()
    return view


def closed():
    memory = mmap.mmap(-1, 8)
    memory.close()
    return memory


@pytest.mark.parametrize("buffer", [
    bytes(8), memoryview(bytearray(8)).toreadonly(), "x" * 8, None, 8, memoryview(bytearray(16))[::2], released(),
    closed(), numpy.zeros(8, "M8[s]"), numpy.zeros((8, 8), order="F"), numpy.zeros(8, object),
    numpy.zeros(8, "O,u4"), (ctypes.py_object * 8)(), memoryview(numpy.zeros(8, object)),
])  # fmt: skip
def test_a_buffer_that_cannot_be_filled(disk, source, buffer):
    """Above all none of Python objects: the interpreter would follow the guest's bytes as pointers."""
    for read in ways(disk):
        with pytest.raises(errors.UsageError, match="a disk cannot be read into"):
            read(0, buffer)
    assert source.asked == []


@pytest.mark.parametrize("buffer", [
    bytearray(8), bytearray(), array.array("I", [0] * 2), memoryview(bytearray(16))[8:], mmap.mmap(-1, 8),
    numpy.zeros((2, 4), "u1"), numpy.zeros(2, "u1,u4"), numpy.zeros(2, [("O", "u4"), ("fO", "u4")]),
])  # fmt: skip
def test_a_buffer_that_is_filled(disk, buffer):
    for read in ways(disk):
        read(5, buffer)
        length = memoryview(buffer).nbytes
        assert memoryview(buffer).tobytes() == DATA[5 : 5 + length]
        read(SIZE - length, buffer)


@pytest.mark.parametrize("offset", [True, 8.0, None, "8", numpy.int64(8)])
def test_an_offset_that_is_no_int(disk, offset):
    for read in (*ways(disk), lambda offset, _: disk.extents(offset)):
        with pytest.raises(errors.UsageError, match="an offset on disk vda is .*: give an int"):
            read(offset, bytearray(8))


@pytest.mark.parametrize("offset, length", [(-1, 1), (SIZE - 1, 2), (SIZE + 1, 0), (1 << 70, 1)])
def test_an_offset_outside_the_disk(disk, source, offset, length):
    for read in ways(disk):
        with pytest.raises(errors.UsageError, match=f"disk vda has {SIZE} bytes: {length} bytes cannot be read from"):
            read(offset, bytearray(length))
    assert source.asked == []


def test_extents_that_begin_outside_the_disk(disk):
    """The error comes at once, not with the first extent."""
    for start in (-1, SIZE + 1):
        with pytest.raises(errors.UsageError, match=f"cannot be read from byte {start} on"):
            disk.extents(start)


@pytest.mark.parametrize("reads", [None, 5, [5], [(0,)], [(0, bytearray(8), 8)], [b"x"], ["x"]])
def test_reads_that_are_no_pairs(disk, source, reads):
    with pytest.raises(errors.UsageError, match="read_many was given"):
        disk.read_many(reads)
    assert source.asked == []


def test_reads_in_any_order_that_overlap(disk):
    buffers = {offset: bytearray(1000) for offset in (3000, 0, 500, 999, 1000)}
    disk.read_many(buffers.items())
    assert {offset: bytes(buffer) for offset, buffer in buffers.items()} == {
        offset: DATA[offset : offset + 1000] for offset in buffers
    }


def test_any_reads_at_once_are_those_one_by_one(disk, source, monkeypatch):
    """In any order, overlapping, empty, and larger than what is read at once."""
    real, chance = source.read_batch, random.Random(9)

    def read_batch(ranges):
        assert sum(length for _, length in ranges) <= 500
        assert all(offset + length <= following for (offset, length), (following, _) in zip(ranges, ranges[1:]))
        return real(ranges)

    monkeypatch.setattr("nbdpull.api.disk.BATCH", 500)
    monkeypatch.setattr(source, "read_batch", read_batch)
    for _ in range(50):
        lengths = [chance.choice([0, 1, 499, 501, 1800]) for _ in range(chance.randrange(8))]
        reads = [(chance.randrange(SIZE - length + 1), bytearray(length)) for length in lengths]
        source.asked.clear()
        disk.read_many(reads)
        assert all(buffer == DATA[offset : offset + len(buffer)] for offset, buffer in reads)
        assert sum(length for _, length in source.asked) == sum(lengths)


def test_what_the_generator_of_reads_raises(disk):
    with pytest.raises(ZeroDivisionError):
        disk.read_many((offset, bytearray(1 // offset)) for offset in (1, 0))


def test_the_end_of_a_backup(disk, source):
    """Also for extents of which some were taken, and for a read in another thread, whose connection is closed."""
    half = disk.extents()
    assert next(half) == (0, SIZE // 2, "data")

    def end():
        disk._end()
        raise errors.SourceError("vda: the source was closed")

    for read in ways(disk):
        disk._source, source.at_a_read = source, end
        with pytest.raises(errors.UsageError, match="vda cannot be read any more: its backup has ended") as caught:
            read(0, bytearray(8))
        assert isinstance(caught.value.__cause__, errors.SourceError)
    for call in (*ways(disk), lambda *_: disk.extents(), lambda *_: next(half)):
        with pytest.raises(errors.UsageError, match="its backup has ended"):
            call(0, bytearray(8))


def test_a_failure_of_a_read_is_what_it_was(disk, source):
    failed = errors.SourceError("vda: reading at byte 0 failed")
    source.at_a_read = lambda: (_ for _ in ()).throw(failed)
    for read in ways(disk):
        with pytest.raises(errors.SourceError) as caught:
            read(0, bytearray(8))
        assert caught.value is failed


def test_another_process_does_not_read(disk, source):
    """Two processes on one connection would take each other's answers."""
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (*ways(disk), lambda *_: disk.extents()):
            try:
                call(0, bytearray(8))
            except errors.UsageError as error:
                refused += "can only be read by the process that opened the backup" in str(error)
        os._exit(refused if not source.asked else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    disk.read_into(0, bytearray(8))
