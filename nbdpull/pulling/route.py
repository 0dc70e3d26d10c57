"""The way from here to QEMU's NBD server: its unix socket, that socket through ssh, or TCP with or without TLS.

Owns: addresses as the user writes them, the parts of a libvirt URI that ssh needs, and the ssh process. Must not know:
NBD's protocol, backups.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Optional, Union

from ..core import child, errors, temporary, unix_socket
from ..core.errors import Check
from ..definitions.domain_xml import Listen
from ..hypervisor import domain
from ..nbd import address, libnbd

_TCP = re.compile(r"tcp:(?:\[([^][/\s\0-\x1f]+)\]|([^][:/\s\0-\x1f]+)):(\d{1,5})\Z", re.ASCII)
_EVERYWHERE = ("0.0.0.0", "::", "*")
_SSH_START = 30  # seconds


@dataclass(frozen=True)
class Route:
    """listen: where QEMU listens, None = a unix socket; certificates: directory of the TLS files, None = no TLS."""

    listen: Optional[Listen] = None
    certificates: Optional[str] = None

    def require_way(self, vm: domain.Domain) -> None:
        """Raise UsageError if QEMU's unix socket is needed and cannot be forwarded to this host."""
        if not self.listen and vm.is_remote:
            ssh_command(vm.uri)

    def socket(self, vm: domain.Domain, run_id: str, wanted: Optional[str]) -> Optional[str]:
        """Return the path at which QEMU creates its unix socket, `wanted` if that is given; None if it creates none."""
        if vm.reads_images:
            return None
        return wanted or (None if self.listen else vm.backups.socket_path(run_id))

    def warnings(self) -> list[str]:
        if not self.listen:
            return []
        if not self.certificates:
            return [f"{self.listen.host}:{self.listen.port} has no TLS: anyone who can reach that port can read "
                    "the disks, and anyone on the network path can change the data"]  # fmt: skip
        version = libnbd.library_version()
        if libnbd.tls_is_verified(version):
            return []
        return [f"libnbd {version} has known gaps in verifying the server's certificate (CVE-2024-7383): against an "
                "attacker in the middle, use libnbd 1.18.5, 1.20.2 or later, or ssh"]  # fmt: skip


def parse(nbd: Optional[str], certificates: Optional[str]) -> Route:
    """Return the Route that the options --nbd and --tls describe. nbd: None, or tcp:HOST:PORT. UsageError."""
    if certificates is not None:
        _require_files(certificates)
    if nbd is None:
        if certificates is not None:
            raise errors.UsageError("--tls is for TCP: use it with --nbd tcp:HOST:PORT")
        return Route()
    match = _TCP.match(nbd)
    if not match or not 0 < int(match[3]) < 65536:
        raise errors.UsageError(f"--nbd {nbd}: write tcp:HOST:PORT, with an IPv6 address in brackets")
    return Route(Listen(match[1] or match[2], int(match[3])), certificates)


def to(vm: domain.Domain, nbd: Optional[str], certificates: Optional[str]) -> Route:
    """Return the Route to a domain that the options describe; a default one if its images are read, without QEMU.
    UsageError."""
    way = parse(nbd, certificates)
    way.require_way(vm)
    return Route() if vm.reads_images else way


def _require_files(folder: str) -> None:
    def is_there(name: str) -> bool:
        return os.access(os.path.join(folder, name), os.R_OK)

    if not is_there("ca-cert.pem"):
        raise errors.UsageError(f"TLS files in {folder}: there is no readable ca-cert.pem to verify the server with")
    if is_there("client-cert.pem") != is_there("client-key.pem"):
        raise errors.UsageError(f"TLS files in {folder}: client-cert.pem or client-key.pem is not readable")


@contextlib.contextmanager
def opened(
    route: Route, vm: domain.Domain, socket: str, check: Check = lambda: None
) -> Iterator[Union[str, address.Tcp]]:
    """Yield the address for source.Source. socket: path of QEMU's socket, on its machine. check() is called during the
    wait for ssh."""
    if route.listen:
        host = vm.host if route.listen.host in _EVERYWHERE else route.listen.host
        yield address.Tcp(host, route.listen.port, route.certificates)
    elif vm.is_remote:
        with _forwarded(vm.uri, socket, check) as local:
            yield local
    else:
        yield socket


@contextlib.contextmanager
def _forwarded(uri: str, socket: str, check: Check) -> Iterator[str]:
    """Yield the path of a unix socket here that ssh forwards to QEMU's socket there. The socket itself has no name any
    more, so nothing is left of it however we end."""
    command = ssh_command(uri)
    with contextlib.ExitStack() as opened:
        log = opened.enter_context(temporary.file())
        with tempfile.TemporaryDirectory(
            prefix="nbdpull-", dir=temporary.place()
        ) as folder:  # no other user may enter it
            local = os.path.join(folder, "nbd")
            process = subprocess.Popen(
                [*command[:-2], "-N", "-L", f"{local}:{socket}", *command[-2:]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=child.ended_with_us(signal.SIGTERM),
            )  # fmt: skip
            opened.callback(process.wait)
            opened.callback(process.terminate)
            _wait_for(local, process, log, check)
            way = os.open(local, os.O_PATH)
            opened.callback(os.close, way)
        yield unix_socket.path_of(way)


def ssh_command(uri: str) -> list[str]:
    """Return the ssh command that libvirt would run for a URI, the host last; UsageError if the URI is not for ssh."""
    parts = urllib.parse.urlsplit(uri)
    transport = parts.scheme.partition("+")[2]
    if transport not in ("ssh", "libssh", "libssh2"):
        raise errors.UsageError(f"{uri}: QEMU's Unix socket is on {parts.hostname}, and only ssh can forward it: "
                                "use qemu+ssh://, or --nbd tcp:HOST:PORT with TLS")  # fmt: skip
    options = dict(urllib.parse.parse_qsl(parts.query))
    words = [options.get("command", "ssh"), "-T", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"]
    words += ["-o", "ServerAliveInterval=15"]
    words += ["-i", options["keyfile"]] if "keyfile" in options else []
    if options.get("no_verify", "0") != "0":
        words += ["-o", "StrictHostKeyChecking=no"]
    words += ["-l", parts.username] if parts.username else []
    words += ["-p", str(parts.port)] if parts.port else []
    return [*words, "--", parts.hostname or ""]


def _wait_for(local: str, process: subprocess.Popen[bytes], log: IO[bytes], check: Check) -> None:
    deadline = time.monotonic() + _SSH_START
    while not os.path.exists(local):
        if process.poll() is not None or time.monotonic() > deadline:
            raise errors.SourceError(f"ssh could not forward QEMU's socket: {child.said(log) or 'no answer'}")
        check()
        time.sleep(0.02)
