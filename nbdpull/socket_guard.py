"""The guard of a guest that its QEMU's NBD clients must not hang up on: a process of its own that stays connected.

    socket_guard.py UUID RUN

Run as a program by socket_keeper.py, imported by nobody; it imports nothing of the package, so that it starts fast and
from any folder. Its standard input is a unix socket. A line comes first, libvirt's URI, upon which it connects and
answers with a byte: "y", or "n" where it could not. Then comes a duplicate of each connection to QEMU's NBD server, a
byte with a descriptor, which it answers likewise. When its input ends, the job may still be there: its parent was
killed, or could not end it. Then it asks for the end of the backup job of RUN until QEMU has hung up, and lets go of
its duplicates only after that. It is in a session of its own and deaf to signals that end the parent.
"""

import select
import signal
import socket
import sys
import time

import libvirt

PAUSE = 0.2  # seconds between two requests to end the job
GONE = (libvirt.VIR_ERR_NO_DOMAIN,)
BACKUP = 9  # job operation


def main(uuid, run):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    parent = socket.socket(fileno=0)
    uri = parent.makefile(buffering=1).readline().strip()  # nothing follows it before our answer
    dom = look_up(uri, uuid)
    parent.sendall(b"y" if dom else b"n")
    kept = kept_until_the_end_of(parent)
    while still_open(kept):
        dom = asked_to_end(dom or look_up(uri, uuid), run)
        time.sleep(PAUSE)


def kept_until_the_end_of(parent):
    """The descriptors that came until the parent's end of the socket was closed."""
    kept = []
    while True:
        try:
            said, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
        except OSError:  # reset by a parent that was killed with an answer of ours unread
            return kept
        if not said:
            return kept
        kept += descriptors
        parent.sendall(said)


def still_open(kept):
    """Those that QEMU has not hung up on."""
    poll = select.poll()
    for descriptor in kept:
        poll.register(descriptor, select.POLLRDHUP)
    over = {descriptor for descriptor, _ in poll.poll(0)}
    kept[:] = [descriptor for descriptor in kept if descriptor not in over]
    return kept


def asked_to_end(dom, run):
    """Ask for the end of the run's job, and of no other; give back what can be asked again."""
    try:
        if dom and f"/nbdpull-{run}-" in dom.backupGetXMLDesc() and dom.jobStats().get("operation") == BACKUP:
            dom.abortJob()
        return dom
    except libvirt.libvirtError:  # it ended, is busy, or the daemon is gone and may come back
        return dom if is_connected(dom) else None


def look_up(uri, uuid):
    try:
        return libvirt.open(uri).lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() in GONE:
            raise  # and its QEMU is gone, too
        return None


def is_connected(dom):
    try:
        return dom.connect().getLibVersion() > 0
    except libvirt.libvirtError:
        return False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
