"""Freezes the file systems of a guest while a backup starts: frozen last, thawed at once, whatever happens.

Owns: every call of the guest agent. The freeze has a guard, the process domain_thaw.py, which thaws the guest if this
process is killed or the start takes too long. Must not know: backups, points.
"""

import contextlib
import logging
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Optional

from ..core import child, errors
from ..core.choices import FREEZE_TIMEOUT, Quiesce
from ..definitions import domain_xml
from . import domain_mark
from .bindings import libvirt

log = logging.getLogger("nbdpull.guest")

FROZEN, CRASH_CONSISTENT = "frozen", "crash-consistent"
# Why a guest was not frozen although it should have been. One without a channel, or not running, is not listed.
MISSED = {
    "agent-not-connected": "no agent runs in it",
    "agent-unresponsive": "its agent did not answer in time",
    "freeze-failed": "its agent refused",
    "thawed-early": "it was thawed before the backup had started",
    "no-freeze-guard": "the process that would thaw it could not be started",
}

_GUARD = Path(__file__).with_name("domain_thaw.py")
_GUARD_START = 20  # seconds; it opens a connection, possibly through ssh
# No answer in time: 86 AGENT_UNRESPONSIVE, 97 AGENT_UNSYNCED, 112 AGENT_COMMAND_TIMEOUT (so named since libvirt 11.2).
# The guest may then freeze later. Any other error is the agent's answer, and the agent itself undoes what it had
# frozen.
_NO_ANSWER = (86, 97, 112)
_BLOCK = -2  # libvirt's default response time, which no call returns: the value for a guest whose timeout was never set


def thaw(dom: Any) -> None:
    """Thaw a guest that a dead run may have left frozen."""
    dom.agentSetResponseTimeout(FREEZE_TIMEOUT, 0)
    try:
        dom.fsThaw()
    finally:
        dom.agentSetResponseTimeout(_BLOCK, 0)
    domain_mark.remove(dom, domain_mark.FREEZING)


class Freeze:
    """A freeze of a guest: `with Freeze(dom, uri, how, seconds) as freeze:` around the start of a backup.

    After the block, `consistency` and `reason` contain the outcome. If `how` is Quiesce.REQUIRE, raises NotQuiesced
    before the block if the guest does not freeze, and after it if the guest did not stay frozen.
    """

    def __init__(self, dom: Any, uri: str, how: str, seconds: float):
        self._dom, self._uri, self._how, self._seconds = dom, uri, how, seconds
        self._guard: Optional[subprocess.Popen[bytes]] = None
        self.consistency, self.reason = CRASH_CONSISTENT, "not-requested"
        self._frozen_at = 0.0
        self._trouble: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """What the operator should know about the freeze, one text each."""
        if self.reason not in MISSED:
            return self._trouble
        why = f"{MISSED[self.reason]} ({self.reason})"
        return [f"the guest was not frozen: {why}; the point is crash-consistent", *self._trouble]

    def __enter__(self) -> "Freeze":
        if self._how != Quiesce.NEVER:
            self.reason = self._obstacle() or self._freeze()
            if self.reason:
                log.info("not frozen: %s", self.reason)
        if self._how == Quiesce.REQUIRE:
            self._require_frozen()
        return self

    def __exit__(self, kind: Any, *exc: Any) -> None:
        if self.consistency == FROZEN:
            self._thaw()
            if self._how == Quiesce.REQUIRE and kind is None:
                self._require_frozen()

    def _require_frozen(self) -> None:
        if self.consistency != FROZEN:
            raise errors.NotQuiesced(
                f"domain '{self._dom.name()}' could not be frozen ({self.reason}): check that the guest agent runs in "
                "it, or use --quiesce=auto"
            )

    def _obstacle(self) -> str:
        """Return why there is no point in trying, as a code word, or ""."""
        if self._dom.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            return "paused"
        state = domain_xml.agent_state(self._dom.XMLDesc(0))
        if state is None:
            return "no-agent-channel"
        return "" if state == "connected" else "agent-not-connected"

    def _freeze(self) -> str:
        """Freeze the guest; return "" or a code word for why that failed."""
        if not self._start_guard():
            return "no-freeze-guard"
        assert self._guard
        try:
            # The timeout stays with the domain, for every client, and cannot be read: we reset it to the default.
            self._dom.agentSetResponseTimeout(int(self._seconds), 0)
            domain_mark.put(self._dom, domain_mark.FREEZING, self._guard.pid)  # in case both processes are killed
            self._send(b"frozen\n")  # before the freeze: a freeze that comes too late must not last
            self._dom.fsFreeze()
        except (libvirt.libvirtError, errors.NoAnswer) as error:
            late = isinstance(error, errors.NoAnswer) or error.get_error_code() in _NO_ANSWER
            self._let_go(done=not late)
            return "agent-unresponsive" if late else "freeze-failed"
        except BaseException:  # we were asked to end
            self._let_go(done=False)
            raise
        self.consistency, self._frozen_at = FROZEN, time.monotonic()
        return ""

    def _thaw(self) -> None:
        try:
            thawed = self._dom.fsThaw()
        except (libvirt.libvirtError, errors.NoAnswer) as error:
            self._let_go(done=False)
            log.info("not thawed: the guard keeps trying")
            self._trouble = [
                f"the guest could not be thawed ({error}): nbdpull retries for some minutes; see virsh domfsthaw"
            ]
            return
        except BaseException:
            self._let_go(done=False)
            raise
        self._let_go(done=True)
        # Only now: whatever reads our log may be slow, and the guest must not wait for it.
        log.info("file systems thawed: frozen for %.3f s", time.monotonic() - self._frozen_at)
        if thawed <= 0:  # something else thawed it: the guard, the guest's own limit, or another client
            self.consistency, self.reason = CRASH_CONSISTENT, "thawed-early"

    # The guard

    def _start_guard(self) -> bool:
        command = [sys.executable, str(_GUARD), self._dom.UUIDString(), str(self._seconds),
                   domain_mark.uri(domain_mark.FREEZING)]  # fmt: skip
        self._guard = subprocess.Popen(
            command, env=child.finding_us(), start_new_session=True, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._guard.stdout
        self._send(self._uri.encode() + b"\n")  # not an argument: a password in it must not appear in the process list
        ready = select.select([self._guard.stdout], [], [], _GUARD_START)[0]
        if ready and self._guard.stdout.readline() == b"ready\n":
            return True
        self._guard.kill()
        self._let_go(done=True)
        return False

    def _send(self, line: bytes) -> None:
        assert self._guard and self._guard.stdin
        with contextlib.suppress(OSError):
            self._guard.stdin.write(line)

    def _let_go(self, done: bool) -> None:
        """Release the guard. done: the guest is not frozen; otherwise the guard continues alone, and we do not wait for
        it."""
        assert self._guard and self._guard.stdin and self._guard.stdout
        if done:
            with contextlib.suppress(libvirt.libvirtError, errors.NoAnswer):
                self._dom.agentSetResponseTimeout(_BLOCK, 0)
                domain_mark.remove(self._dom, domain_mark.FREEZING)
            self._send(b"done\n")
        self._guard.stdin.close()
        self._guard.stdout.close()
        if done:
            self._guard.wait()
