"""A pipe as a target: its reader gets the disk, whoever reads, and however slowly."""

import contextlib
import os
import random
import signal
import threading

import pytest

from nbdpull.core import errors
from nbdpull.targets import stream


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def read_all(descriptor, into, chunk=65536):
    while data := os.read(descriptor, chunk):
        into += data


def random_parts(rng, size):
    """Return [[(offset, bytes), …] of a call, …], ascending, with gaps."""
    calls, at = [], 0
    while at < size:
        call = []
        for _ in range(rng.randrange(1, 4)):
            at += rng.choice([0, 0, 1, 511, 70_000])
            data = rng.randbytes(min(rng.choice([1, 512, 4096, 100_000]), max(0, size - at)))
            if data:
                call.append((at, memoryview(data)))
                at += len(data)
        calls.append(call)
    return calls


@pytest.mark.parametrize("seed", range(8))
def test_what_is_not_written_reads_as_zero(pipe, seed):
    rng = random.Random(seed)
    size = rng.choice([1, 4096, 300_000, 3_000_001])
    calls, expected, got = random_parts(rng, size), bytearray(size), bytearray()
    reader = threading.Thread(target=read_all, args=(pipe[0], got, rng.choice([100, 65536, 1 << 20])))
    reader.start()
    with stream.Stream(pipe[1], size) as target:
        for call in calls:
            assert target.write(call) == sum(len(data) for _, data in call), "the zeroes before them are not counted"
            for offset, data in call:
                expected[offset : offset + len(data)] = data
        target.flush()
    os.close(pipe[1])
    reader.join(30)
    assert got == expected


def test_a_signal_ends_the_wait_for_a_stalled_reader(pipe, monkeypatch):
    monkeypatch.setattr(stream, "LOOK_INTERVAL", 0.001)
    looks = []

    def check():
        looks.append(1)
        if len(looks) == 3:
            raise errors.Interrupted(signal.SIGTERM)

    with pytest.raises(errors.Interrupted), stream.Stream(pipe[1], 1 << 30, check) as target:
        target.write([(0, bytes(1 << 20))])
    assert len(looks) == 3


def test_no_check_while_there_is_room(pipe):
    with stream.Stream(pipe[1], 4096, check=lambda: pytest.fail("it looked")) as target:
        target.write([(0, b"x" * 4096)])
        target.flush()


@pytest.mark.parametrize("blocks", [True, False])
def test_the_descriptor_is_left_as_it_was(pipe, blocks):
    """It is stdout, to which others of this process and its parent write."""
    os.set_blocking(pipe[1], blocks)
    with pytest.raises(KeyboardInterrupt), stream.Stream(pipe[1], 1):
        assert not os.get_blocking(pipe[1])
        raise KeyboardInterrupt
    assert os.get_blocking(pipe[1]) is blocks


def test_a_closed_pipe_is_left_to_the_command_line(pipe):
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError), stream.Stream(pipe[1], 10) as target:
        target.write([(0, b"x")])


def test_a_full_disk_behind_it():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with (
            pytest.raises(errors.OutputError, match="^cannot write to stdout: No space left on device$"),
            stream.Stream(descriptor, 10) as target,
        ):
            target.write([(0, b"x")])
    finally:
        os.close(descriptor)
