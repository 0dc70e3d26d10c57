"""Connections that QEMU must hang up on first: kept open until its NBD server closes them, whatever happens to us.

If the device of a disk runs in an I/O thread, its export does too, and a QEMU before 9.0 closes a client that hung up
from that thread. Since the fix of CVE-2024-7409 it aborts there (`nbd_blockdev_client_closed: Assertion
qemu_in_main_thread()`), and the guest is gone; before that it changed a list without a lock, and could hang. Stopping
the server closes the clients from the main thread, which is safe. So no connection to such a disk may end before the
job does.

Owns: when that is needed, and the duplicates of our sockets, here and in the process socket_guard.py, which ends the
job if we are killed. Must not know: NBD, what a job is for.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from ..core import child, errors
from ..definitions.domain_xml import Disk
from . import qemu_faults
from .domain import Domain

HANG_UP = 5.0  # seconds for the server to close its connections once the job is gone
_GUARD = Path(__file__).with_name("socket_guard.py")
_GUARD_ANSWER = 20  # seconds; it first opens a connection to libvirt
_HELD, _ABANDONED = b"k", b"a"  # messages to the guard
_FAILED = "the process that keeps the connections to QEMU open, without which it could crash, does not work"


def required(vm: Domain, disks: Iterable[Disk], with_tls: bool) -> bool:
    """Return whether the connections to a backup of these Disks must be kept open.

    Unsupported if they cannot be kept open, or if such a disk cannot be read with TLS. A network connection breaks
    without our consent, and libnbd cannot check the peer of a TLS connection on a socket that we made.
    """
    threaded = [disk.target for disk in disks if disk.iothread and not vm.reads_images]
    if not threaded:
        return False
    version = vm.running_version
    named = f"disk {', '.join(threaded)} of domain '{vm.name}' is in an I/O thread (iothread), and QEMU "
    named += ".".join(map(str, version)) if version else "of an unknown version"
    if qemu_faults.hang_up(version):
        if vm.is_remote or with_tls:
            raise errors.Unsupported(
                f"{named} crashes, with its guest, when an NBD client of such a disk disconnects; that can be "
                "prevented only on the domain's own host and without TLS: run nbdpull there, or upgrade to QEMU 9.0.1, "
                "or leave the disk out"
            )
        return True
    if with_tls and qemu_faults.tls_in_thread(version):
        raise errors.Unsupported(
            f"{named} crashes, with its guest, when such a disk is read over TLS: omit --tls and reach its socket "
            "through ssh, or upgrade to QEMU 9.0.1 or 8.2.5, or leave the disk out"
        )
    return False


def require_none(vm: Domain, disks: Iterable[Disk]) -> None:
    """Raise Unsupported if connections must be kept open, which only the process that makes them can do."""
    threaded = [disk.target for disk in disks if disk.iothread and not vm.reads_images]
    if threaded and qemu_faults.hang_up(vm.running_version):
        raise errors.Unsupported(
            f"disk {', '.join(threaded)} of domain '{vm.name}' is in an I/O thread (iothread), and its QEMU crashes, "
            "with its guest, when a command that has read such a disk disconnects: use nbdpull pull, which prevents "
            "that, or upgrade to QEMU 9.0.1, or leave the disk out"
        )


class SocketKeeper:
    """`with SocketKeeper(uri, uuid, run_id) as keeper:` around the life of a backup job.

    Pass every connection to keep() before you use it; from then on only the server can end it. Pass it to abandon()
    when nothing more will be read from it: the guard then reads what arrives. After the block the server has hung up,
    or the guard continues to wait for that. HypervisorError if there can be no guard.
    """

    def __init__(self, uri: str, uuid: str, run_id: str):
        self._uri, self._command = uri, [sys.executable, _GUARD.name, uuid, run_id]
        self._lock = threading.Lock()
        self._kept: dict[socket.socket, bytes] = {}  # "k", or "a" if abandoned
        self._news: list[tuple[bytes, socket.socket]] = []  # not yet sent to the guard
        self._guard: Optional[subprocess.Popen[bytes]] = None
        self._channel = socket.socket()  # to the guard, once there is one
        self._over = False

    def keep(self, connected: socket.socket) -> socket.socket:
        """Hold this connection; return its name for `abandon`. Several threads may call both."""
        kept = connected.dup()
        self._send(_HELD, kept)
        return kept

    def abandon(self, kept: socket.socket) -> None:
        """Declare that nothing will be read from this connection any more."""
        self._send(_ABANDONED, kept)

    def _send(self, state: bytes, kept: socket.socket) -> None:
        with self._lock:
            if self._over:
                return
            self._kept[kept] = state
            self._news.append((state, kept))
            self._require_guard()

    def check(self) -> None:
        """Replace the guard if it was killed. Call this often."""
        if self._guard is not None and self._guard.poll() is not None and not self._over:
            with self._lock:
                self._require_guard()

    def __enter__(self) -> SocketKeeper:
        if not self._start_guard():
            raise errors.HypervisorError(f"{_FAILED}: it cannot connect to libvirt")
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            over = self._hung_up()
            if not over:  # the job could not be ended: the guard retries, and we do not wait for it
                self._require_guard()
            self._channel.close()
            if over and self._guard:
                self._guard.wait()
            self._over = True
            for each in self._kept:
                each.close()

    def _hung_up(self) -> bool:
        """Return whether the server has ended every connection; it does so the moment the job ends."""
        deadline = time.monotonic() + HANG_UP
        for each in self._kept:
            poll = select.poll()
            poll.register(each, select.POLLRDHUP)
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                return False
        return True

    # The guard

    def _require_guard(self) -> None:
        """Ensure that there is a guard that holds all connections.

        If libvirt's daemon is down, the guard waits for it.
        """
        if self._guard is None or self._guard.poll() is not None or not self._handed_over():
            self._start_guard()
            if not self._handed_over():
                raise errors.HypervisorError(_FAILED)

    def _handed_over(self) -> bool:
        try:
            while self._news:
                state, kept = self._news[0]
                socket.send_fds(self._channel, [state], [kept.fileno()])
                if self._channel.recv(1) != state:
                    return False
                del self._news[0]
        except OSError:  # it was killed, or is stopped
            return False
        return True

    def _start_guard(self) -> bool:
        """Start a guard, replacing any earlier one; return whether it is connected to libvirt."""
        self._dismiss()
        ours, its = socket.socketpair()
        ours.settimeout(_GUARD_ANSWER)
        with its:  # started from its directory: `pkill -f nbdpull` should end us, but not the guard
            self._guard = subprocess.Popen(
                self._command, cwd=_GUARD.parent, env=child.finding_us(), start_new_session=True,
                stdin=its.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self._channel = ours
        with contextlib.suppress(OSError):
            ours.sendall(self._uri.encode() + b"\n")  # not an argument: process lists must show no password
            return ours.recv(1) == b"y"
        return False

    def _dismiss(self) -> None:
        self._channel.close()
        self._news = [(state, kept) for kept, state in self._kept.items()]
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
