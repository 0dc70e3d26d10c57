"""How nbdkit is started, and what it says. test_serve.py starts it."""

import io
import json
import os

import pytest

from nbdpull.core import errors
from nbdpull.serving import nbd_server
from nbdpull.serving.nbd_server import TROUBLE, Request, Server


def made(request, **attributes):
    """Return a Server that has started nothing."""
    server = object.__new__(Server)
    started = {"_request": request, "_folder": None, "_socket": None, "_log": io.BytesIO(), "_log_read": 0}
    vars(server).update({**started, **attributes})
    return server


def options(request, **attributes):
    """Return (options of nbdkit, {name: values} for the plugin)."""
    words = made(request, **attributes)._command(7, 8)
    at = words.index(str(nbd_server.PLUGIN))
    values = {}
    for name, _, value in (each.partition("=") for each in words[at + 1 :]):
        values.setdefault(name, []).append(value)
    return words[:at], values


def every(kind=errors.NbdpullError):
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__ and below is not errors.Interrupted:  # nbdkit takes no signal for us
            yield from every(below)


@pytest.fixture(autouse=True)
def no_nbdkit(monkeypatch):
    """Fail if a test starts it."""

    def start(*_args, **_named):
        raise AssertionError("a program is started")

    monkeypatch.setattr(nbd_server.subprocess, "Popen", start)


# -- the command line -------------------------------------------------------------------------------------------------


def test_a_request_reaches_the_plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = Request("store", "vm=1", "a-point", ["vda", "v=b"], cache_bytes=77, writable=True, cached=True)
    words, values = options(request, _socket="/s")
    assert words[-1] == "python" and "-U /s" in " ".join(words) and "-r" not in words
    assert values == {
        "store": [str(tmp_path / "store")], "domain": ["vm=1"], "point": ["a-point"], "disk": ["vda", "v=b"],
        "cache": ["77"], "status": ["7"], "parent": ["8"], "socket": ["/s"], "writable": ["1"], "cached": ["1"],
    }  # fmt: skip


def test_a_port_is_on_this_host_only():
    words, values = options(Request("s3://bucket/x", port=10809))
    assert "-i 127.0.0.1 -p 10809 -r" in " ".join(words)
    assert values["store"] == ["s3://bucket/x"] and not {"socket", "domain", "disk", "writable", "cached"} & {*values}


def test_a_key_is_never_an_argument():
    request = Request("/store", port=1, master=b"very-secret")
    [end] = nbd_server._in_pipe(request.master)
    with os.fdopen(end, "rb") as pipe:
        assert pipe.read() == b"very-secret"
    words = made(request)._command(7, 8, end)
    assert f"key={end}" in words and not any("secret" in word for word in words)
    assert "secret" not in repr(request) and nbd_server._in_pipe(None) == []


@pytest.mark.parametrize("request_, kind, says", [
    (Request("/s", socket="/a", port=1), errors.UsageError, "give --socket or --port, not both"),
    (Request("/s", socket="/" + 120 * "a"), errors.UsageError, "give a path of at most"),
    (Request("/s", socket="/"), errors.OutputExists, "socket / exists: remove it or choose another"),
])  # fmt: skip
def test_a_place_that_is_none(request_, kind, says):
    with pytest.raises(kind, match=says):
        Server(request_)


def test_a_socket_that_leads_nowhere_exists(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(errors.OutputExists):
        Server(Request("/s", socket=str(tmp_path / "link")))
    assert (tmp_path / "link").is_symlink()


# -- its exports ------------------------------------------------------------------------------------------------------


def test_names_of_any_kind_in_uris():
    """A disk can have any name that libvirt takes; a command line quotes it."""
    server = made(Request("/s"))
    server._socket = "/run/a b&c/nbd.sock"
    export = server._export("x/?y", 9)
    assert export.uri == "nbd+unix:///x%2F%3Fy?socket=/run/a%20b%26c/nbd.sock"
    assert export.overlay.endswith(f"-b '{export.uri}' x%2F%3Fy-overlay.qcow2") and export.size == 9
    assert made(Request("/s", port=5))._export("vda", 9).uri == "nbd://127.0.0.1:5/vda"


# -- what it says -----------------------------------------------------------------------------------------------------


def test_troubles_come_once_and_whole():
    server = made(Request("/s"))
    lines = f"{TROUBLE}{json.dumps('disk vda: damaged')}", "nbdkit: x", f"{TROUBLE}not json", f'{TROUBLE}"ha'
    server._log.write("\n".join(lines).encode())
    assert server.troubles() == ["disk vda: damaged"]
    assert server.troubles() == []
    server._log.seek(0, io.SEEK_END)
    server._log.write(b'lf"\n')
    assert server.troubles() == ["half"]


@pytest.mark.parametrize("kind", [*every()], ids=lambda kind: kind.__name__)
def test_an_error_of_the_other_process_is_the_same_here(kind):
    found = nbd_server._error(kind.code, "the text")
    assert (found.code, found.exit_code, str(found)) == (kind.code, kind.exit_code, "the text")


def test_an_error_of_another_version():
    assert type(nbd_server._error("of-the-future", "x")) is errors.NbdpullError


@pytest.mark.parametrize("said, kind, says", [
    ("nbdkit: error: cannot open nbdkit-python-plugin.so", errors.MissingSoftware, "has no Python plugin"),
    ("ModuleNotFoundError: No module named 'numpy'", errors.MissingSoftware, "Python cannot load the packages"),
    ("bind: Address already in use", errors.OutputError, "cannot serve at port 5: bind: Address already in use"),
    ("", errors.OutputError, "cannot serve at port 5: 3"),
])  # fmt: skip
def test_a_start_that_failed(monkeypatch, said, kind, says):
    monkeypatch.setattr(nbd_server.child, "said", lambda _log: said)

    class Process:
        returncode = 3

        def wait(self):
            pass

    found = made(Request("/s", port=5), _process=Process())._failed()
    assert type(found) is kind and says in str(found)
