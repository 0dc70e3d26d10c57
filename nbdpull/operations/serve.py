"""Serve: the disks of a point to any NBD client, until told to end.

Must not know: how the server works (nbd_server.py), what is printed.
"""

from __future__ import annotations

from functools import partial

from ..core.errors import Check, Report
from ..serving import nbd_server
from .options import ServeOptions as Options


def serve(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> None:
    """Serve until `check` raises. report is told of the event "serving" once, and of "trouble" of the server."""
    with nbd_server.Server(nbd_server.Request(**vars(options)), check) as server:
        exports = [vars(export) for export in server.exports]
        told = partial(report, domain=server.domain, point=server.point)
        told(event="serving", writable=options.writable, exports=exports)
        server.wait(lambda text: told(event="trouble", message=text))
