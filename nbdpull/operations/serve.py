"""Serve: serve the disks of a point to any NBD or HTTP client, until interrupted.

Must not know: how the servers work (see nbd_server.py, http/), what is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Optional, Union

from ..core import errors
from ..core.errors import Check, Report
from ..crypto import identity_files
from ..serving import nbd_server
from .options.restores import ServeOptions as Options

if TYPE_CHECKING:
    from ..serving.http import point_server


@dataclass(frozen=True)
class Result:
    """What was served; nothing if it was interrupted before it began."""

    domain: Optional[str] = None
    point: Optional[str] = None
    exports: Sequence[Union[nbd_server.Export, point_server.Export]] = ()


def serve(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Serve until `check` raises Interrupted. report receives the event "serving" once, and "trouble" for each problem
    of the server."""
    if options.as_of is not None:
        from . import earlier

        options = earlier.seen(options)
    return _over_nbd(options, report, check) if options.http is None else _over_http(options, report, check)


def _master(options: Options) -> Optional[bytes]:
    """Return the master key, None without an identity.

    The modules that read a store delay the first byte, so they are imported only if there is an identity.
    """
    if not identity_files.meant(options.identities):
        return None
    from . import unlocking

    return unlocking.master(options.store, options.identities)


def _over_nbd(options: Options, report: Report, check: Check) -> Result:
    for name in ("token_file", "tls", "client_ca"):
        if getattr(options, name) is not None:
            raise errors.UsageError(f"--{name.replace('_', '-')} is for HTTP: use it with --http")
    request = nbd_server.Request(
        options.store,
        domain=options.domain,
        point=options.point,
        disks=options.disks,
        socket=options.socket,
        port=options.port,
        writable=options.writable,
        cache_bytes=options.cache_bytes,
        master=_master(options),
        cached=True,
    )
    served = Result()
    with suppress(errors.Interrupted), nbd_server.Server(request, check) as server:
        served = Result(server.domain, server.point, tuple(server.exports))
        report_point = partial(report, domain=server.domain, point=server.point)
        report_point(event="serving", writable=options.writable, exports=[vars(export) for export in server.exports])
        server.wait(lambda text: report_point(event="trouble", message=text))
    return served


def _over_http(options: Options, report: Report, check: Check) -> Result:
    from ..serving.http import point_server  # the import would delay the first byte over NBD

    if options.token_file is None:
        raise errors.UsageError("--http needs --token-file FILE, with the token that clients must send")
    if options.writable or options.socket is not None or options.port is not None:
        raise errors.UsageError("--http cannot be combined with --socket, --port or --writable")
    request = point_server.Request(
        options.store,
        domain=options.domain,
        point=options.point,
        disks=options.disks,
        cache_bytes=options.cache_bytes,
        listen=options.http or "",
        token_file=options.token_file,
        tls=options.tls,
        client_ca=options.client_ca,
        master=_master(options),
    )
    served = Result()
    with suppress(errors.Interrupted), point_server.serving(request, check) as server:
        served = Result(server.domain, server.point, tuple(server.exports))
        report_point = partial(report, domain=server.domain, point=server.point)
        report_point(event="serving", url=server.url, exports=[vars(export) for export in server.exports])
        server.wait(lambda text: report_point(event="trouble", message=text), check)
    return served
