"""The disks of a point over HTTP, in both shapes.

Owns: what is opened for that, the order in which it is closed, and where clients find it. Must not know: what is
printed, who the clients are.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Callable, NoReturn, Optional
from urllib.parse import quote

from ...core.errors import Check
from ...repository import keyring, series_choice
from . import auth, endpoint, ovirt, volumes
from .app import App
from .point_disks import Changes, PointDisk

LOOK_INTERVAL = 0.2  # seconds between calls of check()

Troubles = queue.SimpleQueue[str]


@dataclass(frozen=True)
class Request:
    """What to serve, and how. listen: the option's value; tls, client_ca: as in endpoint.secured; master: the key of a
    sealed store."""

    store: str
    domain: Optional[str]
    point: str
    disks: list[str]
    cache_bytes: int
    listen: str
    token_file: str
    tls: Optional[str]
    client_ca: Optional[str]
    master: Optional[bytes] = field(default=None, repr=False)


@dataclass(frozen=True)
class Export:
    """disk: its name; size: bytes; map, data: their URLs; since: id of the point since which there are dirty extents,
    None if there are none."""

    disk: str
    size: int
    map: str
    data: str
    since: Optional[str]


class Serving:
    """A running server. domain, point: what is served; url: of the root."""

    def __init__(self, domain: str, point: str, url: str, disks: list[PointDisk], troubles: Troubles) -> None:
        self.domain, self.point, self.url = domain, point, url
        self.exports = [_export(disk, url) for disk in disks]
        self._troubles = troubles

    def wait(self, report: Callable[[str], None], check: Check) -> NoReturn:
        """Wait until check raises. report receives what could not be read for a client, each text once."""
        reported = set()
        while True:
            check()
            with suppress(queue.Empty):
                text = self._troubles.get(timeout=LOOK_INTERVAL)
                if text not in reported:
                    reported.add(text)
                    report(text)


@contextmanager
def serving(request: Request, check: Check = lambda: None) -> Iterator[Serving]:
    """Serve as long as the block lasts. check() is called often before that."""
    token = auth.read(request.token_file)
    troubles: Troubles = queue.SimpleQueue()
    store = keyring.unlocked(request.store, request.master, troubles.put)
    with ExitStack() as stack:
        target, point = series_choice.only_point(store, request.domain, request.point, stack)
        disks: dict[str, PointDisk] = {}
        for name in request.disks or point.disks:
            opened = PointDisk(target, point, name, request.cache_bytes, check, troubles.put)
            disks[name] = stack.enter_context(opened)
        changes: dict[str, Changes] = {name: disk.changes for name, disk in disks.items() if disk.changes}
        app = App([*volumes.routes(disks), *ovirt.routes(disks, token, changes)], token)
        url = stack.enter_context(endpoint.secured(app, "--http", request.listen, request.tls, request.client_ca))
        yield Serving(target.domain, point.id, url, list(disks.values()), troubles)


def _export(disk: PointDisk, url: str) -> Export:
    root = f"{url}/exports/{quote(disk.name, safe='')}"
    return Export(disk.name, disk.size, f"{root}/map", f"{root}/data", disk.changes.since if disk.changes else None)
