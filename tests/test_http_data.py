"""The pieces of a range, against the range itself: in order, and requested before the client takes the one before."""

import random

import pytest

from nbdpull.core import errors
from nbdpull.serving.http import data


class Filled:
    """A volume's `filling`, which says at random that a read has to wait until it is resumed.

    events: what happened: "request" or "wait", and the offset. open: those that have neither ended nor been closed.
    """

    def __init__(self, content, chance, fails_at=None):
        self.content, self.fails_at = content, fails_at
        self.events, self.open, self._chance = [], 0, chance

    def __call__(self, offset, buffer):
        self.open += 1
        try:
            requested = self._chance.random() < 0.7
            self.events.append(("request" if requested else "later", offset))
            yield requested
            self.events.append(("wait", offset))
            if self.fails_at is not None and offset <= self.fails_at < offset + len(buffer):
                raise errors.SourceError("the disk cannot be read")
            buffer[:] = self.content[offset : offset + len(buffer)]
        finally:
            self.open -= 1


@pytest.fixture(params=range(100))
def chance(request, monkeypatch):
    found = random.Random(request.param)
    monkeypatch.setattr(data, "STEP", found.randrange(1, 100))
    monkeypatch.setattr(data, "PIECE", found.randrange(1, 100))
    return found


def some(chance):
    begin = chance.randrange(1000)
    return chance.randbytes(2000), begin, begin + chance.randrange(1000)


def test_all_pieces_of_a_range(chance):
    content, begin, end = some(chance)
    filling = Filled(content, chance)
    assert b"".join(map(bytes, data.in_two_steps(filling, begin, end))) == content[begin:end]
    assert [at for what, at in filling.events if what == "wait"] == [*range(begin, end, data.STEP)]
    assert not filling.open

    def read_into(offset, buffer):
        buffer[:] = content[offset : offset + len(buffer)]

    assert b"".join(map(bytes, data.by_threads(read_into, begin, end, threads=2))) == content[begin:end]


def test_the_next_piece_is_requested_before_the_client_gets_one(chance):
    """Unless there are no connections for it: then it must not keep those of the piece before from it."""
    content, begin, end = some(chance)
    filling = Filled(content, chance)
    at = begin
    for _ in data.in_two_steps(filling, begin, end):
        waited = filling.events.index(("wait", at))
        following = at + data.STEP
        before = [each for each in filling.events[:waited] if each[1] == following]
        assert len(before) == (("request", at) in filling.events and following < end)
        at = following


def test_a_client_that_leaves_and_a_read_that_fails(chance):
    content, begin, end = some(chance)
    for fails in (False, True):
        filling = Filled(content, chance, fails_at=chance.randrange(begin, end) if fails and end > begin else None)
        pieces = data.in_two_steps(filling, begin, end)
        got = []
        try:
            for _ in range(len(content)):
                got.append(bytes(next(pieces)))
                if not fails and chance.random() < 0.2:
                    break
        except StopIteration:
            assert not fails or begin == end
        except errors.SourceError:
            assert fails and len(b"".join(got)) == (filling.fails_at - begin) // data.STEP * data.STEP
        pieces.close()
        assert content[begin:end].startswith(b"".join(got)) and not filling.open
