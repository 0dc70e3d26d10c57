"""What a program requests of a backup.

Owns: the fields and their defaults, most of which are those of the command line. Must not know: what is done with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Optional

from ..core import errors, members
from ..core.choices import FREEZE_TIMEOUT, SHARED_DIR, STALL_TIMEOUT, Offline, OnLostBase, Quiesce
from ..pulling.token import Token
from . import callers

if TYPE_CHECKING:
    from .held import Held

# Fields with a number above 0, and whether it may be None.
_NUMBERS = {"freeze_timeout": False, "stall_timeout": False, "connections": False, "max_duration": True,
            "scratch_limit": True}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What to back up, and how. Times are in seconds, sizes in bytes.

    domain: its name. since: the token of the backup that you have, None: everything is read. uri: libvirt's, None for
    its default. disks: names such as vda, empty for all that can be backed up; exclude: disks to leave out.
    on_lost_base: "full", or "fail" if a disk no longer has a sound base (CheckpointUnusable). checkpoint: whether to
    create one, from which the next backup can start. quiesce: "auto", "require" or "never" freeze the guest's file
    systems through its agent. offline: how to handle a domain that is off: "auto", "start-paused", "read" or "refuse".
    scratch_dir: where QEMU keeps what the guest overwrites, at most scratch_limit. socket: where QEMU creates its
    socket. nbd: "tcp:HOST:PORT". tls: a directory of certificates. connections: to each disk, for reads, fewer if
    there are many disks. stall_timeout: how long a server may be silent. max_duration: how long the backup may take.

    held: called with (disk, start, stop); returns the ranges (offset, length) in which your image of that disk, as of
    `since`, may not be zero, in any order, cut to start and stop or not. It is called in threads of nbdpull, possibly
    several at once. Without it every range that now reads as zero is an extent, changed or not: a disk that was shrunk
    and grown again leaves no other trace.

    resume: id of a backup whose process died while its job continued; `since` and everything else have to be as they
    were.

    on_ready: called before the guest is frozen; on_cut: called with the time (ISO 8601, UTC) after the instant that the
    backup shows.
    """

    domain: str
    since: Optional[Token] = None
    uri: Optional[str] = None
    disks: Sequence[str] = ()
    exclude: Sequence[str] = ()
    on_lost_base: str = OnLostBase.FULL
    checkpoint: bool = True
    quiesce: str = Quiesce.AUTO
    freeze_timeout: float = FREEZE_TIMEOUT
    offline: str = Offline.AUTO
    scratch_dir: str = SHARED_DIR
    scratch_limit: Optional[int] = None
    socket: Optional[str] = None
    nbd: Optional[str] = None
    tls: Optional[str] = None
    connections: int = 4
    stall_timeout: float = STALL_TIMEOUT
    max_duration: Optional[float] = None
    held: Optional[Held] = None
    resume: Optional[str] = None
    on_ready: Optional[Callable[[], None]] = None
    on_cut: Optional[Callable[[str], None]] = None

    def __post_init__(self) -> None:
        """Raise UsageError if a field has an invalid value."""
        words = {"on_lost_base": OnLostBase.WORDS, "quiesce": Quiesce.WORDS, "offline": Offline.WORDS}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise errors.UsageError(f"{name} is {getattr(self, name)!r}: choose {', '.join(known)}")
        self._require_numbers()
        if type(self.checkpoint) is not bool:
            raise errors.UsageError(f"checkpoint is {self.checkpoint!r}: give True or False")
        for name in ("held", "on_ready", "on_cut"):
            callers.require_function(name, getattr(self, name))
        for name in ("disks", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise errors.UsageError(f"{name} is {value!r}: give a list of names")
        if not (self.since is None or isinstance(self.since, Token)):
            raise errors.UsageError("since is not a token: nbdpull.Token.loads(text) makes one")
        self._require_texts()

    def _require_numbers(self) -> None:
        for name, may_be_none in _NUMBERS.items():
            value = getattr(self, name)
            if not (may_be_none if value is None else isinstance(value, (int, float)) and value > 0):
                raise errors.UsageError(f"{name} is {value!r}: give a number above 0")
        if type(self.connections) is not int:
            raise errors.UsageError(f"connections is {self.connections!r}: give a whole number")

    def _require_texts(self) -> None:
        """Raise UsageError where libvirt's bindings would raise a TypeError or a UnicodeError."""
        single = (self.uri, self.scratch_dir, self.socket, self.nbd, self.resume)
        for each in (self.domain, *(text for text in single if text is not None), *self.disks, *self.exclude):
            flaw = members.flaw_of_text(each) if isinstance(each, str) else "is not text"
            if flaw:
                raise errors.UsageError(f"{members.short(each)} {flaw}")
