"""The HTTP application over volumes in memory: pages against a naive model, ranges, tokens, and what is refused."""

import json
import random
import threading

import pytest
from memory_volume import TOKEN, Memory, client, heard, merged, some

from nbdpull.core import errors
from nbdpull.serving.http import auth, data, finish, gate, volumes
from nbdpull.serving.http.message import Refused


def over(*served):
    return client(*volumes.routes({each.name: each for each in served}))


NUMBERS = {
    "full": {"data": (0, "data"), "zero": (2, "zero")},
    "incremental": {"clean": (0, "clean"), "data": (1, "dirty"), "zero": (3, "dirty,zero")},
}


@pytest.mark.parametrize("mode", ["full", "incremental"])
@pytest.mark.parametrize("seed", range(20))
def test_pages_are_contiguous_complete_and_right(mode, seed):
    chance = random.Random(seed)
    volume = some(chance, mode)
    call = over(volume)
    offset = chance.choice([0, chance.randrange(volume.size)])
    length = chance.choice([0, 1, chance.randrange(1, 2 * volume.size)])
    stop = min(offset + length, volume.size) if length else volume.size
    page_size = chance.choice([1, 2, 7, 512])
    reported, at = [], offset
    while at is not None:
        rest = f"&length={stop - at}" if length else ""
        status, headers, body = call("GET", f"/exports/vda/map?offset={at}&page_size={page_size}{rest}")
        page = json.loads(body)
        assert status == 200 and headers["content-length"] == str(len(body))
        assert (page["size"], page["backup_type"]) == (volume.size, mode)
        assert 0 < len(page["extents"]) <= page_size
        reported += page["extents"]
        last = page["extents"][-1]
        at = page["next_offset"]
        assert at is None or at == last["offset"] + last["length"]
    model = [
        {"offset": start, "length": size, "type": NUMBERS[mode][kind][0], "description": NUMBERS[mode][kind][1]}
        for start, size, kind in merged(volume.kinds, offset, stop)
    ]
    assert reported == model


@pytest.mark.parametrize("seed", range(20))
def test_data_is_the_bytes_of_any_range(seed, monkeypatch):
    monkeypatch.setattr(data, "PIECE", 1000)
    monkeypatch.setattr(data, "STEP", 700)
    monkeypatch.setattr(data, "AHEAD", 4000)
    chance = random.Random(seed)
    volume = some(chance, "full")
    call = over(volume)
    offset, length = chance.randrange(volume.size), chance.choice([0, 1, 999, 5000, 1 << 40])
    expected = volume.content[offset : offset + length if length else None]
    url = f"/exports/vda/data?offset={offset}&length={length}"
    status, headers, body = call("GET", url)
    assert (status, body) == (200, expected) and headers["content-length"] == str(len(expected))
    assert call("HEAD", url) == (200, headers, b"")
    first = chance.randrange(len(expected))
    last = chance.randrange(first, len(expected) + 100)
    status, headers, body = call("GET", url, range=f"bytes={first}-{last}")
    assert (status, body) == (206, expected[first : last + 1])
    assert headers["content-range"] == f"bytes {first}-{first + len(body) - 1}/{len(expected)}"
    assert headers["content-length"] == str(len(body))


@pytest.mark.parametrize(
    "text, status, part",
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=100-", 206, slice(100, None)),
        ("bytes=-100", 206, slice(-100, None)),
        ("bytes=-99999", 206, slice(None)),
        ("bytes=0-99999", 206, slice(None)),
        ("blocks=0-1", 200, slice(None)),
        ("bytes=1024-", 416, None),
        ("bytes=5-4", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=-", 416, None),
        ("bytes=a-b", 416, None),
        ("bytes=0-1,5-6", 416, None),
        ("bytes=0-99999999999999999999", 206, slice(None)),
        ("bytes=99999999999999999999-", 416, None),
        ("bytes=\u0661-", 416, None),
    ],
)
def test_ranges(text, status, part):
    volume = Memory(["data", "data"], "full")
    got, headers, body = over(volume)("GET", "/exports/vda/data", range=text)
    assert got == status
    assert body == volume.content[part] if part else headers["content-range"] == "bytes */1024"


def test_head_has_no_ranges():
    status, headers, _ = over(Memory(["data", "data"], "full"))("HEAD", "/exports/vda/data", range="bytes=5-9")
    assert (status, headers["content-length"]) == (200, "1024") and "content-range" not in headers


def test_a_conditional_range_of_changed_content_is_sent_whole():
    volume = Memory(["data", "data"], "full")
    asked = {"range": "bytes=100-", "if-range": '"of-another-backup"'}
    assert over(volume)("GET", "/exports/vda/data", **asked)[::2] == (200, volume.content)


@pytest.mark.parametrize("kind", ["map", "data"])
@pytest.mark.parametrize(
    "query",
    ["offset=-1", "offset=x", "offset=0x10", "offset=1_0", "offset=+1", "offset=1.0", "offset=%D9%A1", "offset=1024",
     "offset=99999999999999999999", "length=-5", "offset=0&offset=1", "&".join(f"a{n}=1" for n in range(20))],
)  # fmt: skip
def test_a_bad_number_is_the_clients_mistake(kind, query):
    status, _, body = over(Memory(["data", "data"], "full"))("GET", f"/exports/vda/{kind}?{query}")
    assert status == 400 and json.loads(body)["code"] == "usage"


@pytest.mark.parametrize("number", ["0", "-1", "65537", "x"])
def test_a_page_has_a_size_within_limits(number):
    assert over(Memory(["data"], "full"))("GET", f"/exports/vda/map?page_size={number}")[0] == 400


def test_empty_parameters_count_as_absent():
    call = over(Memory(["data"], "full"))
    assert call("GET", "/exports/vda/map?offset=&length=&page_size=") == call("GET", "/exports/vda/map")


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/exports/vdb/map", 404),
        ("GET", "/exports/../vda/map", 404),
        ("GET", "/exports/%2e%2e%2fvda/map", 404),
        ("GET", "/exports/vd%61/map", 200),
        ("GET", "/exports/%ff%00/data", 404),
        ("GET", "/exports/vda/map/", 404),
        ("GET", "/exports/vda", 404),
        ("GET", "/", 404),
        ("GET", "", 404),
        ("GET", "/exportready", 200),
        ("POST", "/exports/vda/map", 405),
        ("PUT", "/exports/vda/data", 405),
        ("DELETE", "/exportready", 405),
    ],
)
def test_paths(method, path, status):
    got, headers, body = over(Memory(["data"], "full"))(method, path)
    assert got == status
    assert (headers.get("allow") == "GET, HEAD") == (status == 405)


@pytest.mark.parametrize("path", ["/exports/vda/map", "/exports/vda/data", "/exports/vdb/map", "/nothing"])
@pytest.mark.parametrize("token", [None, "", "another-token-of", TOKEN + "x", TOKEN[:-1], "\xff"])
def test_a_wrong_token_opens_nothing(path, token):
    """Not even the names of the disks."""
    status, headers, body = over(Memory(["data"], "full"))("GET", path, token=token)
    assert status == 401 and "vda" not in body.decode() and TOKEN not in body.decode()


def test_a_token_has_three_places():
    call = over(Memory(["data"], "full"))
    assert call("GET", f"/exports/vda/map?x-kubevirt-export-token={TOKEN}", token=None)[0] == 200
    assert call("GET", "/exports/vda/map", token=None, authorization=f"Bearer {TOKEN}")[0] == 200
    assert call("GET", "/exports/vda/map", token=None, authorization=f"Basic {TOKEN}")[0] == 401
    assert call("GET", "/exportready", token=None)[0] == 200


def test_a_token_is_in_no_log(caplog):
    volume = Memory(["data"], "full")
    volume.fails_from = 0
    with heard(caplog):
        assert over(volume)("GET", f"/exports/vda/map?x-kubevirt-export-token={TOKEN}&page_size=x")[0] == 400
        assert over(volume)("GET", f"/exports/vda/data?x-kubevirt-export-token={TOKEN}", token=None)[0] == 500
        volume.extents = None
        assert over(volume)("GET", f"/exports/vda/map?x-kubevirt-export-token={TOKEN}", token=None)[0] == 500
    assert caplog.records and TOKEN not in caplog.text


@pytest.mark.parametrize("text", ["", "\n", "short", "two words here", "x" * 1025, "a-token\nand another"])
def test_a_token_file_has_one_good_token(tmp_path, text):
    (tmp_path / "token").write_text(text)
    (tmp_path / "token").chmod(0o600)
    with pytest.raises(errors.UsageError, match="token-file"):
        auth.read(str(tmp_path / "token"))


def test_a_token_file_is_not_for_everybody(tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(errors.UsageError, match="chmod 600"):
        auth.read(str(tmp_path / "token"))
    (tmp_path / "token").chmod(0o640)
    assert auth.read(str(tmp_path / "token")).is_shown({"x-kubevirt-export-token": TOKEN}, {})
    with pytest.raises(errors.UsageError, match="No such file"):
        auth.read(str(tmp_path / "none"))


# -- a backup that begins and ends ------------------------------------------------------------------------------------


def test_before_and_after_nothing_can_be_read():
    closing = gate.Gate()
    call = client(*volumes.routes(closing))
    states = []
    for step in (lambda: None, lambda: closing.open({"vda": Memory(["data"], "full")}), closing.close):
        step()
        states.append([call("GET", path)[0] for path in ("/exportready", "/exports/vda/map", "/exports/vda/data")])
    assert states == [[503] * 3, [200] * 3, [503] * 3]


def test_the_first_read_that_fails_ends_all():
    closing = gate.Gate()
    volume = Memory(["data", "data"], "full")
    closing.open({"vda": volume})
    call = client(*volumes.routes(closing))
    volume.fails_from = 1000
    assert call("GET", "/exports/vda/data?length=512")[0] == 200
    status, _, body = call("GET", "/exports/vda/data")
    assert status == 500 and json.loads(body)["code"] == "source"
    assert isinstance(closing.failed, errors.SourceError)
    assert call("GET", "/exports/vda/data?length=512")[0] == 503
    status, _, body = call("GET", "/exports/vda/map")
    assert status == 503 and "cannot be read" in json.loads(body)["message"]


def test_volumes_that_no_client_has_read():
    """A probe of our own is no client, and neither is a request for nothing but the size."""
    closing = gate.Gate()
    assert closing.unread() == []
    closing.open({name: Memory(["data", "clean"], "incremental") for name in ("vda", "vdb", "vdc")})
    call = client(*volumes.routes(closing))
    closing.probe()
    assert call("HEAD", "/exports/vda/data")[0] == 200
    assert closing.unread() == ["vda", "vdb", "vdc"]
    call("GET", "/exports/vda/map")
    call("GET", "/exports/vdc/data")
    closing.close()
    closing.probe()
    assert closing.unread() == ["vdb"]


def test_an_empty_disk_can_be_read():
    closing = gate.Gate()
    closing.open({"vda": Memory([], "full")})
    assert client(*volumes.routes(closing))("GET", "/exports/vda/data")[::2] == (200, b"")
    assert closing.unread() == []


def test_closing_waits_for_a_read_in_progress():
    closing, volume = gate.Gate(), Memory(["data"], "full")
    begun, go = threading.Event(), threading.Event()
    read = volume.read_into
    volume.read_into = lambda offset, buffer: (begun.set(), go.wait(), read(offset, buffer))
    closing.open({"vda": volume})
    got = []
    reader = threading.Thread(target=lambda: got.append(client(*volumes.routes(closing))("GET", "/exports/vda/data")))
    reader.start()
    begun.wait()
    ender = threading.Thread(target=closing.close)
    ender.start()
    while len(closing):
        pass
    assert ender.is_alive()
    go.set()
    ender.join()
    reader.join()
    assert got[0][2] == volume.content


def test_closing_waits_for_no_client():
    """A read that waits until its client has taken what came before has only begun."""
    closing = gate.Gate()
    closing.open({"vda": Memory(["data"] * 4000, "full")})
    pieces = closing["vda"].pieces(0, 4000 * 512)
    next(pieces)
    closing.close()
    with pytest.raises(Refused, match="has ended"):
        next(pieces)
    assert closing.failed is None


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"ok": 1}', b'{"ok": "true"}', b'{"ok": true, "x": 1}', b"\xff",
                                  b'{"ok": false, "ok": true}',
                                  b"[" * 10000])  # fmt: skip
def test_a_finish_says_one_thing(body):
    asked = finish.Finish()
    asked.begin()
    assert client(*asked.routes())("POST", "/finish", body)[0] == 400
    assert not asked.wait(0)


def test_only_the_first_finish_counts():
    asked = finish.Finish()
    call = client(*asked.routes())
    assert call("POST", "/finish", b'{"ok":true}')[0] == 409, "it has not begun"
    asked.begin()
    got = []
    first = threading.Thread(target=lambda: got.append(call("POST", "/finish", b'{"ok":true}')))
    first.start()
    assert asked.wait(10) and asked.ok is True
    assert call("POST", "/finish", b'{"ok":false}')[0] == 409
    assert asked.ok is True
    asked.answer(200, {"committed": True})
    first.join()
    assert got[0][0] == 200 and json.loads(got[0][2]) == {"committed": True}
    assert call("POST", "/finish", b'{"ok":true}')[0] == 409
    assert call("GET", "/finish")[0] == 405
    assert call("POST", "/finish", b'{"ok":true}', token="wrong-token")[0] == 401
