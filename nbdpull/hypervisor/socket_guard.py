"""Guards a guest whose QEMU its NBD clients must not hang up on: a separate process that stays connected.

    socket_guard.py UUID RUN

socket_keeper.py runs it as a program; nothing imports it. Its standard input is a unix socket. The first line is
libvirt's URI; it connects there and answers with a byte: "y", or "n" if it could not. Then comes a duplicate of each
connection to QEMU's NBD server, with "k" while its parent reads from it, with "a" once nobody does; it answers with the
same byte. When its input ends, the job may still exist: its parent was killed, or could not end it. The guard then
requests the end of the backup job of RUN until QEMU has hung up on every connection, and exits.

It reads and discards what arrives on abandoned connections: QEMU stops, with its guest, if it has to wait for space in
a socket for an answer of its NBD server. It has its own session and ignores the signals that end the parent.
"""

import os
import select
import socket
import sys
import threading
import time
from typing import Any

import libvirt

from nbdpull.hypervisor import guard

PAUSE = 0.2  # seconds between two requests to end the job
CHUNK = 1 << 16  # bytes read at once
BACKUP = 9  # job operation


def main(uuid: str, run: str) -> None:
    guard.begin()
    parent = socket.socket(fileno=0)
    uri = parent.makefile(buffering=1).readline().strip()  # nothing follows it before our answer
    dom = guard.look_up(uri, uuid)
    parent.sendall(b"y" if dom else b"n")
    connections = Connections()
    connections.hold_for(parent)
    if connections.any_open:  # else there is nothing to guard, and the next run may resume the job
        # in a thread: a call of libvirt may wait for QEMU, and QEMU for us to read what it sends
        threading.Thread(target=end_job, args=(dom, uri, uuid, run), daemon=True).start()
        connections.drop_until_hung_up()


class Connections:
    """Descriptors of our connections to QEMU."""

    def __init__(self) -> None:
        self._poll = select.poll()  # for those that nobody reads from
        self._kept: list[int] = []

    @property
    def any_open(self) -> bool:
        return bool(self._kept)

    def hold_for(self, parent: socket.socket) -> None:
        """Hold the connections until the parent closes its end of its socket."""
        self._poll.register(parent, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != parent.fileno():
                    self._drop(descriptor)
                elif not self._receive(parent):
                    self._poll.unregister(parent)
                    return

    def _receive(self, parent: socket.socket) -> bool:
        """Receive a message; return False if there will be no more."""
        try:
            said, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
            for descriptor in descriptors:
                if said == b"a":
                    self._poll.register(descriptor, select.POLLIN)
                else:
                    self._kept.append(descriptor)
            parent.sendall(said)
            return bool(said)
        except OSError:  # the parent was killed, with an answer of ours unread or unsent
            return False

    def drop_until_hung_up(self) -> None:
        """Discard everything that arrives until QEMU has ended every connection."""
        for descriptor in self._kept:
            self._poll.register(descriptor, select.POLLIN)
        open_ones = set(self._kept)
        while open_ones:
            for descriptor, _ in self._poll.poll():
                if not self._drop(descriptor):
                    open_ones.discard(descriptor)

    def _drop(self, descriptor: int) -> bool:
        """Read and discard what has arrived; return False if the connection has ended."""
        try:
            if os.read(descriptor, CHUNK):
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        self._poll.unregister(descriptor)
        return False


def end_job(dom: Any, uri: str, uuid: str, run: str) -> None:
    while True:
        dom = asked_to_end(dom or guard.look_up(uri, uuid), run)
        time.sleep(PAUSE)


def asked_to_end(dom: Any, run: str) -> Any:
    """Request the end of the run's job, and of no other; return the domain if it can be asked again."""
    try:
        if dom and f"/nbdpull-{run}-" in dom.backupGetXMLDesc() and dom.jobStats().get("operation") == BACKUP:
            dom.abortJob()
        return dom
    except libvirt.libvirtError:  # it ended, is busy, or the daemon is gone and may come back
        return dom if guard.is_connected(dom) else None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
