"""The way to QEMU's NBD server, as options and URIs describe it. test_remote.py goes that way."""

from types import SimpleNamespace

import pytest

pytest.importorskip("nbd")
pytest.importorskip("libvirt")

from nbdpull.core import errors  # noqa: E402
from nbdpull.definitions.domain_xml import Listen  # noqa: E402
from nbdpull.nbd import address  # noqa: E402
from nbdpull.pulling import route  # noqa: E402
from nbdpull.pulling.route import Route  # noqa: E402


@pytest.fixture
def certificates(tmp_path):
    for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
        (tmp_path / name).touch()
    return tmp_path


def vm(uri, reads_images=False):
    host = uri.partition("://")[2].partition("/")[0]
    return SimpleNamespace(uri=uri, host=host or "localhost", is_remote=bool(host), reads_images=reads_images)


def refused(says, nbd, certificates=None):
    with pytest.raises(errors.UsageError, match=says):
        route.parse(nbd, certificates)


@pytest.mark.parametrize("text, listen", [
    ("tcp:hv1:10809", ("hv1", 10809)),
    ("tcp:[::1]:1", ("::1", 1)),
    ("tcp:0.0.0.0:65535", ("0.0.0.0", 65535)),
    (None, None),
])  # fmt: skip
def test_an_address(text, listen):
    assert route.parse(text, None) == Route(listen and Listen(*listen))


@pytest.mark.parametrize("text", [
    "", "tcp:", "tcp:hv1", "tcp:hv1:", "tcp:hv1:0", "tcp:hv1:65536", "tcp::10809", "tcp:::1:10809", "tcp:[]:1",
    "udp:hv1:1", "tcp:hv1:1\n", "hv1:10809", "tcp:hv1:-1", "tcp:h v:1", "tcp:h\x01:1", "tcp:[::1:1", "tcp:hv1/x:1",
])  # fmt: skip
def test_an_invalid_address(text):
    refused("write tcp:HOST:PORT, with an IPv6 address in brackets", text)


def test_files_for_tls(certificates):
    folder = str(certificates)
    assert route.parse("tcp:hv1:1", folder) == Route(Listen("hv1", 1), folder)
    refused("--tls is for TCP: use it with --nbd tcp:HOST:PORT", None, folder)
    (certificates / "client-key.pem").unlink()
    refused("client-cert.pem or client-key.pem is not readable", "tcp:hv1:1", folder)
    (certificates / "client-cert.pem").unlink()
    assert route.parse("tcp:hv1:1", folder).certificates == folder  # the server need not want one
    (certificates / "ca-cert.pem").unlink()
    refused("there is no readable ca-cert.pem to verify the server with", "tcp:hv1:1", folder)


def test_a_domain_whose_images_are_read_needs_no_way():
    off = vm("qemu:///system", reads_images=True)
    assert route.to(off, "tcp:hv1:1", None) == Route()
    with pytest.raises(errors.UsageError, match="write tcp"):
        route.to(off, "hv1", None)  # it is refused nevertheless


@pytest.mark.parametrize("uri, nbd, is_possible", [
    ("qemu:///system", None, True),
    ("qemu+ssh://hv1/system", None, True),
    ("qemu+libssh2://hv1/system", None, True),
    ("qemu+tls://hv1/system", None, False),
    ("qemu+tls://hv1/system", "tcp:hv1:1", True),
])  # fmt: skip
def test_only_ssh_forwards_a_socket(uri, nbd, is_possible):
    if is_possible:
        route.to(vm(uri), nbd, None)
        return
    with pytest.raises(errors.UsageError, match="QEMU's Unix socket is on hv1, and only ssh can forward it"):
        route.to(vm(uri), nbd, None)


@pytest.mark.parametrize("uri, listen, at", [
    ("qemu:///system", None, "/run/socket"),
    ("qemu:///system", "hv2", address.Tcp("hv2", 1, "/tls")),
    ("qemu+ssh://hv1/system", "0.0.0.0", address.Tcp("hv1", 1, "/tls")),  # not an address to connect to
    ("qemu:///system", "::", address.Tcp("localhost", 1, "/tls")),
])  # fmt: skip
def test_the_address_to_connect_to(uri, listen, at):
    way = Route(Listen(listen, 1), "/tls") if listen else Route()
    with route.opened(way, vm(uri), "/run/socket") as found:
        assert found == at


@pytest.mark.parametrize("way, is_verified, says", [
    (Route(), False, []),
    (Route(Listen("hv1", 1)), True, ["hv1:1 has no TLS: anyone who can reach that port"]),
    (Route(Listen("hv1", 1), "/tls"), True, []),
    (Route(Listen("hv1", 1), "/tls"), False, ["libnbd 1.14.2 has known gaps"]),
])  # fmt: skip
def test_who_else_could_read(monkeypatch, way, is_verified, says):
    monkeypatch.setattr(route.libnbd, "library_version", lambda: "1.14.2")
    monkeypatch.setattr(route.libnbd, "tls_is_verified", lambda _version: is_verified)
    found = way.warnings()
    assert len(found) == len(says) and all(text.startswith(start) for text, start in zip(found, says))


@pytest.mark.parametrize("uri, words", [
    ("qemu+ssh://hv1/system", ["ssh"]),
    ("qemu+ssh://hv1/system?command=/opt/ssh", ["/opt/ssh"]),
    ("qemu+ssh://hv1/system?no_verify=1", ["ssh", "-o StrictHostKeyChecking=no"]),
    ("qemu+ssh://hv1/system?no_verify=0", ["ssh"]),
    ("qemu+ssh://me@hv1:22/system?keyfile=/a%20b", ["ssh", "-i /a b", "-l me", "-p 22"]),
])  # fmt: skip
def test_what_libvirt_has_in_its_uri_goes_to_ssh(uri, words):
    found = route.ssh_command(uri)
    assert found[0] == words[0] and found[-2:] == ["--", "hv1"]
    options = " ".join(found[1:-2])
    assert all(each in options for each in words[1:])
    for option in ("-i ", "-l ", "-p ", "StrictHostKeyChecking"):
        assert (option in options) == any(option in each for each in words)
    assert "BatchMode=yes" in options and "ExitOnForwardFailure=yes" in options  # it never asks, and never half works


def test_a_host_cannot_be_an_option_of_ssh():
    assert route.ssh_command("qemu+ssh://-oProxyCommand=x/system")[-2] == "--"
