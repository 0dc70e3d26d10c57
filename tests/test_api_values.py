"""What the API accepts and returns as values: options, tokens, what an image holds, the caller's own exceptions."""

import base64
import json
import random
import zlib

import pytest

import nbdpull
from nbdpull.api import callers, held
from nbdpull.core import errors
from nbdpull.pulling.token import Before, Made

TOKEN = nbdpull.Token(
    "c7a5fdbd-cdaf-9455-926a-d65c16db1809", "20261122T194500Z-7f3a9c04",
    Made("c", "20261122T194500Z-7f3a9c04", 5, ["vda"]), {"vda": Before(5, "/image")},
)  # fmt: skip


def text(document, prefix="nbdpull-token-1:"):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return prefix + base64.urlsafe_b64encode(zlib.compress(data)).decode()


def test_a_token_is_read_as_it_was_written():
    many = [f"vd{number}" for number in range(1000)]
    large = nbdpull.Token(
        TOKEN.domain, TOKEN.run, Made("c", TOKEN.run, 5, many), {disk: Before(1, "/i" * 100) for disk in many},
        [TOKEN.checkpoint] * 100,
    )  # fmt: skip
    for token in (TOKEN, large, nbdpull.Token(TOKEN.domain, TOKEN.run, None, {})):
        assert nbdpull.Token.loads(f" {token.dumps()}\n") == token
        assert "\n" not in token.dumps() and token.dumps().isascii()


@pytest.mark.parametrize(
    "wrong",
    ["", "x", TOKEN.dumps()[:-9], TOKEN.dumps()[5:], text({}), text([]), text(b"x"), text(b"[" * 100_000), "ä" * 50,
     text(b"0" * (1 << 25)), "nbdpull-token-1:" + "A" * (1 << 21), None, b"x", 5],
)  # fmt: skip
def test_invalid_tokens(wrong):
    """Also in a file of `run` and `expose`, whose user knows nothing of Python."""
    why = "its text has to be complete and unchanged" if isinstance(wrong, str) else "give back the text that dumps"
    with pytest.raises(errors.UsageError, match=f"not a token of nbdpull: {why}"):
        nbdpull.Token.loads(wrong)


def test_a_token_of_a_later_nbdpull():
    with pytest.raises(errors.UsageError, match="from a newer nbdpull"):
        nbdpull.Token.loads(TOKEN.dumps().replace("-1:", "-2:"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"on_lost_base": "Fail"}, "on_lost_base is 'Fail': choose full, fail"),
        ({"quiesce": "requir"}, "choose auto, require, never"),
        ({"offline": None}, "choose auto, start-paused, read, refuse"),
        ({"stall_timeout": -1}, "stall_timeout is -1: give a number above 0"),
        ({"connections": 0}, "connections is 0"),
        ({"connections": "4"}, "connections is '4'"),
        ({"connections": 2.5}, "connections is 2.5: give a whole number"),
        ({"connections": True}, "connections is True: give a whole number"),
        ({"connections": None}, "connections is None: give a number above 0"),
        ({"stall_timeout": None}, "stall_timeout is None"),
        ({"freeze_timeout": None}, "freeze_timeout is None"),
        ({"max_duration": float("nan")}, "max_duration is nan"),
        ({"checkpoint": "no"}, "checkpoint is 'no': give True or False"),
        ({"held": [(0, 1)]}, r"held is \[\(0, 1\)\]: give a function"),
        ({"on_ready": "x"}, "on_ready is 'x': give a function"),
        ({"on_cut": 5}, "on_cut is 5: give a function"),
        ({"disks": "vda"}, "disks is 'vda': give a list of names"),
        ({"exclude": None}, "exclude is None"),
        ({"since": TOKEN.dumps()}, "since is not a token"),
        ({"since": json}, "since is not a token"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(errors.UsageError, match=message):
        nbdpull.Options("vm1", **options)


@pytest.mark.parametrize("name", ["check", "report"])
def test_what_is_no_function(name):
    pytest.importorskip("libvirt")
    with pytest.raises(errors.UsageError, match=f"{name} is 5: give a function"):
        nbdpull.backup(nbdpull.Options("vm1", uri="test:///default"), None, **{name: 5})


@pytest.mark.parametrize("name", ["domain", "uri", "scratch_dir", "socket", "nbd", "resume", "disks", "exclude"])
@pytest.mark.parametrize(
    "value, flaw", [("x\udcff", "is not text in UTF-8"), ("x\0", "is not text in UTF-8"), (b"x", "is not text")]
)
def test_a_text_that_libvirt_cannot_be_given(name, value, flaw):
    with pytest.raises(errors.UsageError, match=rf"x.* {flaw}$"):
        nbdpull.Options(**{"domain": "vm1", name: [value] if name in ("disks", "exclude") else value})


def test_ranges_in_any_order_and_twice_make_no_difference():
    for seed in range(300):
        rng = random.Random(seed)
        reported = [(rng.randrange(100), rng.randrange(30)) for _ in range(rng.randrange(8))]
        start = rng.randrange(100)
        stop = start + rng.randrange(60)
        wanted = {at for offset, length in reported for at in range(offset, offset + length)} & set(range(start, stop))
        found = held.joined(reported, start, stop, "vda")
        assert {at for offset, length in found for at in range(offset, offset + length)} == wanted
        assert found == sorted(found) and all(length for _, length in found)
        ends = [offset + length for offset, length in found]
        assert all(end < offset for end, (offset, _) in zip(ends, found[1:])), "disjoint, and joined"


def test_a_range_beyond_everything():
    assert held.joined([(990, 1 << 64)], 0, 1000, "vda") == [(990, 10)]


@pytest.mark.parametrize("wrong", [(-1, 5), (0, -5), ("0", 5), (0.5, 1), (1,), (1, 2, 3), None, 7, (True, 1)])
def test_invalid_ranges(wrong):
    with pytest.raises(errors.UsageError, match="disk vda returned"):
        held.joined([(0, 1), wrong], 0, 10, "vda")


@pytest.mark.parametrize("wrong", [None, 5, True])
def test_held_returns_no_ranges(wrong):
    """A return was forgotten, for example."""
    with pytest.raises(errors.UsageError, match=rf"held\(\) of disk vda returned {wrong}: return ranges"):
        held.of_disk(lambda *_: wrong, "vda")(0, 10)


def test_what_a_caller_raises_travels_and_comes_out():
    raised, calls = KeyError("x"), []

    def fail():
        calls.append(1)
        raise raised

    function = callers.wrapped(fail)
    for _ in range(2):  # the first to hear of it may be a thread that nobody listens to
        with pytest.raises(errors.NbdpullError):
            function()
    assert calls == [1]
    with pytest.raises(KeyError) as caught, callers.unwrapped():
        function()
    assert caught.value is raised
    with pytest.raises(errors.JobLost), callers.unwrapped():
        callers.wrapped(lambda: (_ for _ in ()).throw(errors.JobLost("gone")))()
