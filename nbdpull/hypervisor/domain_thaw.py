"""The guard of a frozen guest: a separate process that thaws it if nothing else does.

    domain_thaw.py UUID SECONDS MARK

domain_freeze.py runs it as a program; nothing imports it. It reads lines: after libvirt's URI it connects and writes
"ready"; "frozen" starts a clock; "done" means that the guest was thawed. It thaws the guest when SECONDS have passed
since "frozen", or when its input ends after "frozen" without "done", which shows that its parent was killed. It then
removes MARK, the URI of a metadata element. It has its own session and ignores the signals that end the parent.
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
BLOCK = -2  # libvirt's default response time of an agent: the value for a guest whose timeout was never set


def main(uuid: str, seconds: float, mark: str) -> None:
    guard.begin()
    uri = line().decode().strip()
    dom = guard.look_up(uri, uuid)
    os.write(1, b"ready\n")  # to the parent, through its pipe
    if not wait_for_done(seconds):
        thaw(dom, uri, uuid, mark)


def wait_for_done(seconds: float) -> bool:
    """Wait for the parent; return False if we must thaw the guest."""
    deadline: Optional[float] = None
    while True:
        left = None if deadline is None else max(0, deadline - time.monotonic())
        if not select.select([sys.stdin], [], [], left)[0]:
            return False
        message = line()
        if message == b"frozen\n":
            deadline = time.monotonic() + seconds
        else:
            return message == b"done\n" or deadline is None  # a guest that we did not freeze is frozen by somebody else


def line() -> bytes:
    """Read one line: the parent sends the next only after an answer, from us or from the guest."""
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        return pipe.readline()


def thaw(dom: Any, uri: str, uuid: str, mark: str) -> None:
    deadline = time.monotonic() + GIVE_UP
    while time.monotonic() < deadline:
        try:
            dom = dom or guard.look_up(uri, uuid)
            if dom is not None:  # else the daemon does not answer yet
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
