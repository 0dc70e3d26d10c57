"""Serve: the disks of a point to any NBD client, until told to end.

Must not know: how the server works (nbd_server.py), what is printed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Optional

from ..core import errors
from ..core.errors import Check, Report
from ..serving import nbd_server
from ..serving.nbd_server import Export
from .options import ServeOptions as Options


@dataclass(frozen=True)
class Result:
    """What was served; nothing where it was told to end before it began."""

    domain: Optional[str] = None
    point: Optional[str] = None
    exports: tuple[Export, ...] = ()


def serve(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Serve until `check` raises Interrupted. report is told of the event "serving" once, and of "trouble" of the
    server."""
    served = Result()
    with suppress(errors.Interrupted), nbd_server.Server(nbd_server.Request(**vars(options)), check) as server:
        served = Result(server.domain, server.point, tuple(server.exports))
        told = partial(report, domain=server.domain, point=server.point)
        told(event="serving", writable=options.writable, exports=[vars(export) for export in server.exports])
        server.wait(lambda text: told(event="trouble", message=text))
    return served
