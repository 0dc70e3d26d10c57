"""Expose: serve a backup of a domain over HTTP until a client confirms that it has the backup.

Owns: the order of steps, and that only a client's confirmation commits the backup. Must not know: the shape of the
interface (see serving/http), how a backup is made (see api).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from ..api.job import open_backup
from ..api.served import Served
from ..core import errors
from ..core.errors import Check, Report
from ..pulling import token_file
from ..serving.http import auth, endpoint, ovirt, volumes
from ..serving.http.app import App
from ..serving.http.finish import Finish
from ..serving.http.gate import Gate
from .between_tokens import between, commit, wanted
from .options.exports import ExposeOptions as Options

LOOK_INTERVAL = 0.1  # seconds between checks of what may end the backup
CONNECTIONS = 8  # to each disk, for reads: four for the next piece of a client, four for the one after it
PROBE_INTERVAL = 1.0  # seconds between reads of our own, which fail if the job is gone


@dataclass(frozen=True)
class Exposed:
    """An exposed disk. map, data: URLs of its map and its data."""

    disk: str
    size: int
    mode: str
    reason: str
    map: str
    data: str


@dataclass(frozen=True)
class Result:
    """A committed backup. token: the text of its token."""

    domain: str
    id: str
    as_of: str
    consistency: str
    consistency_reason: str
    token: str
    disks: Sequence[Exposed]
    dropped_checkpoints: Sequence[str]
    warnings: Sequence[str]
    seconds: float


def expose(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Begin a backup, serve it, and commit it when a client confirms it.

    report receives the event "exposing" once. Declined if a client abandons the backup, LimitReached if no client
    finishes it within ttl: then, and after any other error, nothing has moved.
    """
    began = time.monotonic()
    asked, gate = Finish(), Gate()
    token = auth.read(options.token_file)
    since = token_file.read_if_there(options.since) if options.since is not None else None
    tokens = between(since, options.since, options.token_out)
    if options.nbd_tls is not None and options.nbd is None:
        raise errors.UsageError("--nbd-tls is for TCP: use it with --nbd tcp:HOST:PORT")
    backup = wanted(options, tokens, tls=options.nbd_tls, connections=CONNECTIONS)
    app = App([*volumes.routes(gate), *ovirt.routes(gate, token), *asked.routes()], token)
    # Listen before the backup begins: if the port is taken, nothing is lost.
    serving = endpoint.secured(app, "--listen", options.listen, options.tls, options.client_ca)
    with serving as url, _answered(asked):
        with open_backup(backup, check) as job:
            exposed = [_exposed(disk, url) for disk in job.disks]
            try:
                gate.open({disk.name: Served(disk) for disk in job.disks})
                asked.begin()
                report(event="exposing", domain=options.domain, url=url, id=job.id, as_of=job.as_of, ttl=options.ttl,
                       consistency=job.consistency, exports=[asdict(each) for each in exposed],
                       warnings=list(job.warnings))  # fmt: skip
                _await(options, gate, asked, check)
            finally:
                gate.close()  # before anything is closed that a request may read from
            if gate.failed:
                raise gate.failed
            job.finish()
            failed = commit(job, tokens)
        unread = [f"no client read disk {name}, or asked what changed" for name in gate.unread()]
        warnings = [*job.warnings, *unread, *failed]
        result = Result(options.domain, job.id, job.as_of, job.consistency, job.consistency_reason, job.token.dumps(),
                        exposed, job.dropped_checkpoints, warnings, round(time.monotonic() - began, 3))  # fmt: skip
        asked.answer(200, {"committed": True, "id": result.id, "token": result.token, "warnings": warnings})
        return result


@contextmanager
def _answered(asked: Finish) -> Iterator[None]:
    """Answer a waiting client with the outcome, once the backup has been cleaned up."""
    try:
        yield
    except errors.NbdpullError as error:
        asked.answer(200 if isinstance(error, errors.Declined) else 500, {
            "committed": False, "code": error.code, "message": str(error), "left_behind": list(error.left_behind),
        })  # fmt: skip
        raise
    finally:
        asked.answer(500, {"committed": False, "code": errors.NbdpullError.code, "message": "internal error"})


def _exposed(disk: Any, url: str) -> Exposed:
    root = f"{url}/exports/{quote(disk.name, safe='')}"
    return Exposed(disk.name, disk.size, disk.mode, disk.reason, f"{root}/map", f"{root}/data")


def _await(options: Options, gate: Gate, asked: Finish, check: Check) -> None:
    """Return when a client has the backup; raise an error if that has become impossible."""
    until = time.monotonic() + options.ttl
    probe = 0.0
    while not asked.wait(LOOK_INTERVAL):
        check()
        if time.monotonic() > until:
            raise errors.LimitReached(f"no client finished the backup within {options.ttl:g} s: allow more with --ttl")
        if time.monotonic() > probe:
            gate.probe()
            probe = time.monotonic() + PROBE_INTERVAL
        if gate.failed:
            raise gate.failed
    if not asked.ok:
        raise errors.Declined('the client abandoned the backup: it sent {"ok": false}')
