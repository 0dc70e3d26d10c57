"""A raw image as a target: against an array of bytes, however much the kernel does in a call, and whatever it
supports."""

import errno
import os
import random

import pytest

from nbdpull.core import errors
from nbdpull.targets import file

SIZE = 3 << 20


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "image.raw"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return path


def opened(path, flags=os.O_RDWR):
    return file.File(os.open(path, flags), str(path), path.stat().st_size)


def short_writes(rng):
    """A kernel that writes less than it is given, as it may."""

    def pwritev(descriptor, buffers, offset):
        data = b"".join(bytes(buffer) for buffer in buffers)
        return os.pwrite(descriptor, data[: rng.randrange(1, len(data) + 1)], offset)

    return pwritev


def without_fallocate(*_args):
    """A file system that cannot deallocate anything."""
    return -1


@pytest.mark.parametrize("fallocate", [None, without_fallocate], ids=["as it is here", "without fallocate"])
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_writes_and_zeroes_at_random(path, monkeypatch, seed, short, fallocate):
    rng = random.Random(seed)
    if short:
        monkeypatch.setattr(file.os, "pwritev", short_writes(rng))
    if fallocate:
        monkeypatch.setattr(file, "_FALLOCATE", fallocate)
    expected = bytearray(path.read_bytes())
    with opened(path) as target:
        for _ in range(12):
            if rng.random() < 0.4:
                offset = rng.randrange(SIZE)
                length = min(rng.choice([1, 4095, 4096, 1_500_000]), SIZE - offset)
                assert target.zero(offset, length) == length
                expected[offset : offset + length] = bytes(length)
                continue
            at, parts = rng.randrange(SIZE // 2), []
            for _ in range(rng.randrange(1, 6)):
                at += rng.choice([0, 0, 1, 4096])
                data = rng.randbytes(rng.choice([1, 512, 70_000]))
                parts.append((at, memoryview(data)))
                expected[at : at + len(data)] = data
                at += len(data)
            assert target.write(parts) == sum(len(data) for _, data in parts)
        target.flush()
        offset = rng.randrange(SIZE)
        assert target.read(offset, 100_000) == bytes(expected[offset : offset + 100_000]).ljust(100_000, b"\0")
    assert path.read_bytes() == expected


def test_more_buffers_than_one_call_takes(path):
    count = 2 * file._MAX_IOV + 5
    with opened(path) as target:
        assert target.write([(n, b"%c" % (n % 251)) for n in range(count)]) == count
    assert path.read_bytes()[:count] == bytes(n % 251 for n in range(count))


def test_the_size_stays_where_the_end_is_made_zero(path):
    with opened(path) as target:
        target.zero(SIZE - 5000, 5000)
    data = path.read_bytes()
    assert len(data) == SIZE and not any(data[-5000:]) and any(data[-5100:-5000])


@pytest.mark.parametrize("seed", range(4))
def test_all_nonzero_data_is_in_allocated_ranges(tmp_path, seed):
    """What is not reported is taken for zero, and left alone: so it must be zero."""
    rng, path = random.Random(seed), tmp_path / "sparse"
    with open(path, "wb") as sparse:
        sparse.truncate(SIZE)
        for _ in range(5):
            sparse.seek(rng.randrange(SIZE - 70_000))
            sparse.write(rng.randbytes(rng.choice([1, 70_000])))
    data = path.read_bytes()
    with opened(path) as target:
        for _ in range(20):
            offset = rng.randrange(SIZE)
            length = rng.randrange(1, SIZE - offset + 1)
            reached = offset
            for start, size in target.allocated(offset, length):
                assert reached <= start and size > 0 and start + size <= offset + length, "in order, within the range"
                assert not any(data[reached:start])
                reached = start + size
            assert not any(data[reached : offset + length])
        assert target.allocated(0, SIZE) != [(0, SIZE)], "the holes are seen"


def test_a_file_without_holes_is_allocated_completely(path, monkeypatch):
    """A block device."""

    def lseek(*_args):
        raise OSError(errno.EINVAL, "Invalid argument")

    with opened(path) as target:
        monkeypatch.setattr(file.os, "lseek", lseek)
        assert target.allocated(4096, 8192) == [(4096, 8192)]


def test_the_kernel_begins_to_write_before_the_flush(path, monkeypatch):
    began = []
    monkeypatch.setattr(file, "start_writeback", began.append)
    monkeypatch.setattr(file, "WRITEBACK_STEP", 8192)
    with opened(path) as target:
        for n in range(7):
            target.write([(n * 4096, bytes(4096))])
    assert len(began) == 3


@pytest.mark.parametrize("deed", [lambda target: target.write([(0, b"x")]), lambda target: target.zero(0, 4096)])
def test_an_error_says_which_file(path, deed):
    with opened(path, os.O_RDONLY) as target, pytest.raises(errors.OutputError, match=f"^cannot write to {path}: "):
        deed(target)
