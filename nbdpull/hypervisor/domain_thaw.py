"""The guard of a frozen guest: a process of its own that thaws it when nobody else does.

    domain_thaw.py UUID SECONDS MARK

Run as a program by domain_freeze.py, imported by nobody. It reads lines: libvirt's URI, upon which it connects and says
"ready"; "frozen" starts a clock, "done" says that the guest was thawed. It thaws when SECONDS have passed since
"frozen", and when its input ends after that without "done": so it learns that its parent was killed. It takes off the
MARK then, the URI of a metadata element. It is in a session of its own and deaf to signals that end the parent.
"""

import os
import select
import sys
import time
from typing import Any, Optional

import libvirt

from nbdpull.hypervisor import guard

GIVE_UP = 600  # seconds: an agent that hangs may come back, and then carry out the freeze
PAUSE = 1.0
BLOCK = -2  # libvirt's own response time of an agent: that of a guest whose time nobody set


def main(uuid: str, seconds: float, mark: str) -> None:
    guard.begin()
    uri = line().decode().strip()
    dom = guard.look_up(uri, uuid)
    os.write(1, b"ready\n")  # to the parent, through its pipe
    if not told_done(seconds):
        thaw(dom, uri, uuid, mark)


def told_done(seconds: float) -> bool:
    """Wait for the parent; False where the guest is ours to thaw."""
    deadline: Optional[float] = None
    while True:
        left = None if deadline is None else max(0, deadline - time.monotonic())
        if not select.select([sys.stdin], [], [], left)[0]:
            return False
        told = line()
        if told == b"frozen\n":
            deadline = time.monotonic() + seconds
        else:
            return told == b"done\n" or deadline is None  # the freeze of a guest that we did not freeze is another's


def line() -> bytes:
    """One at a time: the parent sends the next only after an answer, ours or the guest's."""
    with open(0, "rb", buffering=0, closefd=False) as told:
        return told.readline()


def thaw(dom: Any, uri: str, uuid: str, mark: str) -> None:
    deadline = time.monotonic() + GIVE_UP
    while time.monotonic() < deadline:
        try:
            dom = dom or guard.look_up(uri, uuid)
            dom.fsThaw()
            dom.agentSetResponseTimeout(BLOCK)
            dom.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, mark, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            return
        except libvirt.libvirtError as error:
            if error.get_error_code() in guard.GONE or is_off(dom):
                return
            dom = dom if guard.is_connected(dom) else None
        time.sleep(PAUSE)


def is_off(dom: Any) -> bool:
    try:
        return dom is not None and not dom.isActive()
    except libvirt.libvirtError as error:
        return bool(error.get_error_code() in guard.GONE)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
