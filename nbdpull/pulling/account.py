"""What a pull from any source reports: the event `start`, and the members of a manifest that describe the run.

Must not know: how a pull is done, what is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple, Optional

from .. import __version__
from ..core.errors import Report
from ..core.laps import Laps
from ..definitions.domain_xml import Disk
from ..format.manifest import CheckpointEntry, ParentEntry
from ..repository import marker
from .base import Choice
from .held_series import Held


class Cut(NamedTuple):
    """The instant that a point shows. as_of: ISO 8601, None: unknown; checkpoint: the one made at that instant."""

    as_of: Optional[str]
    checkpoint: Optional[CheckpointEntry]
    consistency: str
    consistency_reason: str


class Whose(NamedTuple):
    """The identity of the domain that is pulled. domain: its name."""

    domain: str
    uuid: str


def start(
    report: Report,
    point_id: str,
    choice: Choice,
    disks: Iterable[Disk],
    resumed: bool = False,
    offline: Optional[str] = None,
) -> None:
    report(
        event="start",
        point=point_id,
        resumed=resumed,
        offline=offline,
        since=choice.since,
        parent=choice.parent and choice.parent.id,
        disks=choice.described(disks),
    )


def members(
    held: Held,
    whose: Whose,
    choice: Choice,
    cut: Cut,
    laps: Laps,
    versions: Mapping[str, str] = {},  # noqa: B006
    passwords: Iterable[str] = (),
    autostart: bool = False,
) -> dict[str, Any]:
    """Return the members of a manifest that describe the run.

    versions: of the programs and libraries that were used to read, except nbdpull's own; passwords: types of the
    displays that have one; autostart: whether the domain starts with its host.
    """
    parent = choice.parent
    return {
        "sequence": held.sequence,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "store": marker.uuid_of(held.series.store),
        "parent": ParentEntry(parent.id, parent.sha256) if parent else None,
        "since": choice.since,
        **whose._asdict(),
        **cut._asdict(),
        "passwords": list(passwords),
        "autostart": autostart or None,
        "versions": {"nbdpull": __version__, **versions},
        "seconds": laps.seconds,
    }
