"""One file of a bucket being written: how its bytes are sent."""

import hashlib

import pytest

from nbdpull.storage.s3_file import S3Writer

KIB, MIB = 1 << 10, 1 << 20


def sent(data):
    """Return (the body that a request gets, the blocks that urllib3 reads from it), for a file of this content."""
    found = []

    def put(body, size, digest):
        assert (size, digest) == (len(data), hashlib.sha256(data).digest())
        if isinstance(body, bytes):
            return found.extend([body, [body]])
        for _ in range(2):  # a failed request is repeated
            body.seek(0)
            found[:] = [body, [*iter(lambda: body.read(16 * KIB), b"")]]
        return None

    with S3Writer("file", "s3://bucket/file", put) as file:
        for start in range(0, len(data), 300 * KIB):
            file.write(data[start : start + 300 * KIB])
    assert b"".join(found[1]) == data
    return found


@pytest.mark.parametrize("size", [0, 1, 64 * KIB])
def test_a_small_file_is_sent_without_asking_first(size):
    """As botocore asks before it sends any file object: that is a round trip."""
    assert isinstance(sent(bytes(size))[0], bytes)


@pytest.mark.parametrize("size", [64 * KIB + 1, 5 * MIB, 12 * MIB + 1])
def test_a_large_file_is_sent_in_large_blocks(size):
    body, blocks = sent(bytes(size))
    assert not isinstance(body, bytes)
    assert [len(block) for block in blocks[:-1]] == [MIB] * (len(blocks) - 1)


def test_a_reader_with_a_buffer_of_its_own_gets_no_more_than_fits():
    """As awscrt, which signs in place of botocore where it is installed: it reads with `readinto` if there is one."""
    data, found = bytes(range(256)) * KIB, []

    def put(body, size, digest):
        buffer = bytearray(100 * KIB)
        body.seek(0)
        while count := body.readinto(memoryview(buffer)):
            found.append(bytes(buffer[:count]))

    with S3Writer("file", "s3://bucket/file", put) as file:
        file.write(data)
    assert [len(each) for each in found] == [100 * KIB, 100 * KIB, 56 * KIB] and b"".join(found) == data
