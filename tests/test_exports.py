"""api/exports: the URI for a command has server, export and certificates, whatever characters are in the names."""

import os
import urllib.parse

import pytest

from nbdpull.api import exports
from nbdpull.core import errors
from nbdpull.nbd.address import Kept, Tcp

NAME = "vda of/a?b&c=%2f#ü"


def parts(server, export=NAME):
    """Return scheme, host and port, export, and parameters, by RFC 3986."""
    found = urllib.parse.urlsplit(exports._uri(server, export))
    assert not found.fragment and found.path[0] == "/"
    return found.scheme, found.netloc, urllib.parse.unquote(found.path[1:]), dict(urllib.parse.parse_qsl(found.query))


@pytest.mark.parametrize("path", ["/run/a.sock", "/run/a b?c&d=e#%2f+ü.sock"])
def test_a_unix_socket(path):
    assert parts(path) == ("nbd+unix", "", NAME, {"socket": path})


def test_a_socket_without_a_name():
    """It is one of our descriptors, which a command has to find through our process."""
    assert parts("/proc/self/fd/7")[3] == {"socket": f"/proc/{os.getpid()}/fd/7"}


@pytest.mark.parametrize("host, written", [("hv1", "hv1"), ("10.0.0.1", "10.0.0.1"), ("fe80::1", "[fe80::1]")])
def test_a_port(host, written, monkeypatch, tmp_path):
    assert parts(Tcp(host, 10809)) == ("nbd", f"{written}:10809", NAME, {})
    monkeypatch.chdir(tmp_path)
    for folder in ("/etc/pki/a b&c", "tls"):
        reported = parts(Tcp(host, 10809, folder))
        assert reported == ("nbds", f"{written}:10809", NAME, {"tls-certificates": os.path.abspath(folder)})


@pytest.mark.parametrize("server, kind", [(None, errors.UsageError), (Kept("/run/a.sock", None), errors.Unsupported)])
def test_addresses_that_cannot_be_passed_on(server, kind):
    with pytest.raises(kind):
        exports._uri(server, "vda")
