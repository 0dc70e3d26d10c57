"""Volumes in ovirt-imageio's format: extents against a naive model, tickets, ranges, and what is refused."""

import itertools
import json
import random

import pytest
from memory_volume import BLOCK, TOKEN, Memory, client, heard, merged, some

from nbdpull.core import errors
from nbdpull.serving.http import auth, gate, message, ovirt
from nbdpull.serving.http.message import Request

SECRET = auth.Token(TOKEN.encode())
TICKET = SECRET.ticket("vda")


def over(*served, changes=None):
    known = {each.name: each for each in served}
    return client(*ovirt.routes(known, SECRET, changes))


def extents(call, context, ticket=TICKET):
    status, headers, body = call("GET", f"/images/{ticket}/extents?context={context}", token=None)
    assert status == 200 and "content-length" not in headers, "it is sent as it is read"
    return json.loads(body)


def model(volume, **flags):
    """Return the extents block by block, then merged. flags: {member: the kinds for which it is true}."""
    said = [tuple(kind in kinds for kinds in flags.values()) for kind in volume.kinds]
    return [{"start": start, "length": length, **dict(zip(flags, expected))}
            for start, length, expected in merged(said, 0, volume.size)]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_extents_cover_the_disk_and_are_joined(seed):
    volume = some(random.Random(seed), ["full", "incremental"][seed % 2])
    call = over(volume)
    assert extents(call, "zero") == model(volume, zero=("zero",), hole=())
    assert extents(call, "") == extents(call, "zero")
    if volume.mode == "incremental":
        assert extents(call, "dirty") == model(volume, dirty=("data", "zero"), zero=("zero",))


def test_a_disk_in_full_has_no_dirty_extents():
    """The client expects 404 in that case, and nothing else."""
    status, _, body = over(Memory(["data"], "full"))("GET", f"/images/{TICKET}/extents?context=dirty")
    assert status == 404 and json.loads(body)["code"] == "full"


def test_changes_are_given_beside_a_whole_disk():
    whole, changes = Memory(["data", "data", "zero"], "full"), Memory(["clean", "data", "clean"], "incremental")
    call = over(whole, changes={"vda": changes})
    assert extents(call, "zero") == model(whole, zero=("zero",), hole=())
    assert extents(call, "dirty") == model(changes, dirty=("data", "zero"), zero=("zero",))
    assert over(whole, changes={})("GET", f"/images/{TICKET}/extents?context=dirty")[0] == 404


def test_a_range_is_a_part():
    volume = Memory(["data"] * 4, "full")
    call = over(volume)
    status, headers, body = call("GET", f"/images/{TICKET}", token=None, range="bytes=100-1499")
    assert (status, body) == (206, volume.content[100:1500])
    assert headers["content-range"] == f"bytes 100-1499/{volume.size}" and headers["content-length"] == "1400"
    assert call("GET", f"/images/{TICKET}", token=None)[2] == volume.content
    status, headers, body = call("HEAD", f"/images/{TICKET}", token=None)
    assert (status, headers["content-length"], body) == (200, str(volume.size), b"")
    for wrong in ("bytes=0-1,4-5", f"bytes={volume.size}-", "bytes=5-4", "bytes=x"):
        status, headers, _ = call("GET", f"/images/{TICKET}", token=None, range=wrong)
        assert (status, headers["content-range"]) == (416, f"bytes */{volume.size}")


def test_options_list_the_features():
    status, headers, body = over(Memory(["data"], "full"))("OPTIONS", f"/images/{TICKET}", token=None)
    assert status == 200 and headers["allow"] == "OPTIONS,GET,HEAD"
    assert json.loads(body) == {"features": ["extents"], "max_readers": ovirt.MAX_READERS, "max_writers": 1}


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST", "DELETE"])
def test_nothing_can_be_written(method):
    status, headers, _ = over(Memory(["data"], "full"))(method, f"/images/{TICKET}", token=None)
    assert status == 405 and headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("ticket", ["vda", "vdb", TOKEN, "", "*", TICKET[:-1], TICKET + "0", SECRET.ticket("vdb"),
                                    TICKET.upper(), "%ff", "\xff"])  # fmt: skip
@pytest.mark.parametrize("token", [None, "another-token", TICKET])
def test_a_wrong_ticket_opens_nothing(ticket, token):
    call = over(Memory(["data"], "full"))
    for method, path in (
        ("GET", ""),
        ("HEAD", ""),
        ("OPTIONS", ""),
        ("GET", "/extents"),
        ("GET", "/extents?context=x"),
    ):
        status, _, body = call(method, f"/images/{ticket}{path}", token=token)
        assert status == 403 and b"vda" not in body and TICKET.encode() not in body


def test_a_ticket_opens_one_disk_and_nothing_else():
    first, second = Memory(["data"], "full", seed=1), Memory(["data"], "full", seed=2)
    second.name = "vdb"
    call = over(first, second)
    assert call("GET", f"/images/{TICKET}", token=None)[2] == first.content
    assert call("GET", f"/images/{SECRET.ticket('vdb')}", token=None)[2] == second.content
    assert call("GET", "/images", token=TICKET)[0] == 401


def test_the_token_opens_disks_by_name_and_lists_the_tickets():
    volume = Memory(["data"], "incremental")
    call = over(volume)
    assert call("GET", "/images/vda")[2] == volume.content
    assert call("GET", "/images/vdb")[0] == 403
    assert json.loads(call("GET", "/images")[2]) == {
        "images": [{"name": "vda", "size": BLOCK, "dirty": True, "path": f"/images/{TICKET}"}]
    }
    assert call("GET", "/images", token=None)[0] == 401


def test_an_unknown_context_is_the_clients_mistake():
    assert over(Memory(["data"], "full"))("GET", f"/images/{TICKET}/extents?context=data")[0] == 400


def test_more_extents_than_are_sent_at_once():
    """1,048,576 of them were refused: there are no pages. imageio's own server has no limit, either."""
    for blocks in (1, message.LIST_PIECE - 1, message.LIST_PIECE, message.LIST_PIECE + 1, 3 * message.LIST_PIECE + 1):
        volume = Memory(list(itertools.islice(itertools.cycle(["data", "zero"]), blocks)), "full")
        assert extents(over(volume), "zero") == model(volume, zero=("zero",), hole=())


class Many(Memory):
    """2,000,000 extents. sent: how many were requested; closed: whether nobody requests more."""

    def __init__(self):
        self.name, self.mode, self.size, self.sent, self.closed = "vda", "full", 2_000_000 * BLOCK, 0, False

    def extents(self, start=0):
        try:
            for number in range(start // BLOCK, self.size // BLOCK):
                self.sent += 1
                yield number * BLOCK, BLOCK, "zero" if number % 2 else "data"
        finally:
            self.closed = True


def test_extents_are_read_as_they_are_sent():
    """So an answer takes no memory; and an abandoned one reads no more."""
    volume = Many()
    answer = ovirt.routes({"vda": volume}, SECRET)[3].call(Request("GET", ("images", TICKET, "extents")), TICKET)
    taken = 0
    for piece in itertools.islice(answer.body, 5):
        taken += len(piece)
        assert volume.sent <= 5 * message.LIST_PIECE + 1 and len(piece) < 100 * message.LIST_PIECE
    assert taken > 5 * message.LIST_PIECE * 40
    answer.body.close()
    assert volume.closed


def test_a_map_that_fails_at_once_is_an_error():
    volume = Memory(["data"], "full")
    volume.extents = lambda start=0: (_ for _ in ()).throw(errors.SourceError("the map cannot be read"))
    assert over(volume)("GET", f"/images/{TICKET}/extents")[0] == 500


def test_an_empty_disk():
    call = over(Memory([], "full"))
    assert extents(call, "zero") == [] and call("GET", f"/images/{TICKET}")[::2] == (200, b"")


def test_a_ticket_of_a_backup_that_has_ended():
    closing = gate.Gate()
    call = client(*ovirt.routes(closing, SECRET))
    closing.open({"vda": Memory(["data"], "full")})
    assert call("GET", f"/images/{TICKET}")[0] == 200
    closing.close()
    assert call("GET", f"/images/{TICKET}")[0] == 403


def test_a_ticket_is_in_no_log(caplog):
    volume = Memory(["data"], "full")
    volume.extents = None
    with heard(caplog):
        assert over(volume)("GET", f"/images/{TICKET}/extents", token=None)[0] == 500
    assert caplog.records and TICKET not in caplog.text and TOKEN not in caplog.text
