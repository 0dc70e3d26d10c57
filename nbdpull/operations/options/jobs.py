"""The options that pull, run and expose share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ...core.choices import FREEZE_TIMEOUT, SHARED_DIR, STALL_TIMEOUT, Offline, OnLostBase, Quiesce


@dataclass(frozen=True)
class Backup:
    """The options of every backup of a domain, whatever it is read from and whoever receives it.

    disks, exclude: disks to back up, or to leave out. on_lost_base, quiesce: a word of the class of that name.
    """

    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    on_lost_base: str = OnLostBase.FULL
    quiesce: str = Quiesce.AUTO
    stall_timeout: float = STALL_TIMEOUT


@dataclass(frozen=True)
class Job:
    """The options of every backup job of libvirt.

    offline: a word of the class of that name. scratch_limit: most bytes that QEMU may keep in scratch_dir. socket: path
    where QEMU creates its socket. nbd: "tcp:HOST:PORT".
    """

    uri: Optional[str] = None
    offline: str = Offline.AUTO
    freeze_timeout: float = FREEZE_TIMEOUT
    scratch_dir: str = SHARED_DIR
    scratch_limit: Optional[int] = None
    socket: Optional[str] = None
    nbd: Optional[str] = None
