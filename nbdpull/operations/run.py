"""Run: a backup whose blocks a command of the user reads over NBD.

Owns: what the command receives, and that only its success moves the base. Must not know: how a job is begun or ended,
what the command does.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Optional

from ..api import exports
from ..api.disk import Disk
from ..api.job import Job, open_for_others
from ..core import command, errors
from ..core.errors import Check, Report
from ..pulling import token_file
from ..pulling.token import Token
from .between_tokens import between, commit, wanted
from .options.exports import RunOptions as Options

log = logging.getLogger("nbdpull.run")
_LOOK = 1.0  # seconds between questions to libvirt whether the job still exists
_DISK = ("name", "size", "mode", "reason")


@dataclass(frozen=True)
class Result:
    """A committed backup.

    run: its id; since: id of the backup of the given token, None without one; token: path of the new token, None if
    none was asked for; disks: with name, size, mode and reason.
    """

    domain: str
    run: str
    since: Optional[str]
    as_of: str
    consistency: str
    consistency_reason: str
    token: Optional[str]
    disks: list[dict[str, Any]]
    dropped_checkpoints: list[str]
    seconds: float
    warnings: list[str]


def run(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make a backup, and commit it if the command exits with 0; otherwise nothing has moved."""
    started = time.monotonic()
    command.require_there(options.command)
    since = token_file.read_if_there(options.since) if options.since is not None else None
    tokens = between(since, options.since, options.token)
    # Without a token, nothing could use a checkpoint: so none is made.
    with open_for_others(wanted(options, tokens, checkpoint=options.token is not None), check) as job:
        _run_command(options, job, since, report)
        job.finish()
        log.info("backup job ended")
        failed = commit(job, tokens)
    return Result(
        domain=options.domain,
        run=job.id,
        since=since.run if since else None,
        as_of=job.as_of,
        consistency=job.consistency,
        consistency_reason=job.consistency_reason,
        token=options.token,
        disks=[_of_disk(disk) for disk in job.disks],
        dropped_checkpoints=job.dropped_checkpoints,
        seconds=round(time.monotonic() - started, 3),
        warnings=[*job.warnings, *failed],
    )


def _run_command(options: Options, job: Job, since: Optional[Token], report: Report) -> None:
    """Run the command. CommandFailed if it does not exit with 0; the job's error instead if the job was lost."""
    with ExitStack() as handed:
        disks = [_described(disk, export, handed) for disk, export in zip(job.disks, exports.of(job).values())]
        described = {
            "run": job.id,
            "since": since.run if since else None,
            "as_of": job.as_of,
            "consistency": job.consistency,
            "consistency_reason": job.consistency_reason,
            "disks": disks,
        }
        report(event="start", domain=options.domain, **described)
        path = handed.enter_context(command.handed([json.dumps({"domain": options.domain, **described})]))
        environment = {**options.environment, **_variables(options.domain, described), "NBDPULL_JSON": path}
        code = command.run(options.command, environment, options.stdout, _looking(job))
    log.info("command ended: %s", command.said(code))
    if code:
        exports.require_active(job)  # a lost job explains the failure
        raise errors.CommandFailed(
            f"command {options.command[0]!r}: {command.said(code)}; the backup was not committed, nothing has changed"
        )


def _looking(job: Job) -> Callable[[], None]:
    """Return a check that also asks libvirt now and then whether the job still exists."""
    asked = time.monotonic()

    def look() -> None:
        nonlocal asked
        exports.check(job)
        if time.monotonic() - asked > _LOOK:
            exports.require_active(job)
            asked = time.monotonic()

    return look


def _of_disk(disk: Disk) -> dict[str, Any]:
    return {name: getattr(disk, name) for name in _DISK}


def _described(disk: Disk, export: exports.Export, handed: ExitStack) -> dict[str, Any]:
    """Return what `_of_disk` does, with the address of the disk and the file that lists its extents."""
    extents = handed.enter_context(command.handed(_lines(disk)))
    way = {"uri": export.uri, "export": export.name, "bitmap": export.bitmap, "context": export.context}
    return {**_of_disk(disk), **way, "extents": extents}


def _lines(disk: Disk) -> Iterator[str]:
    for extent in disk.extents():
        yield f"{extent.offset} {extent.length} {extent.kind}"


def _variables(domain: str, described: dict[str, Any]) -> dict[str, str]:
    """Return the environment variables with these values: NBDPULL_RUN_ID, …, and for each disk NBDPULL_VDA_URI, …"""
    disks = described["disks"]
    of_run = {name.upper(): value or "" for name, value in described.items() if name not in ("run", "disks")}
    of_run["RUN_ID"] = described["run"]
    of_disks = {
        f"{disk['name']}_{name}".upper(): str(value) for disk in disks for name, value in disk.items() if name != "name"
    }
    found = {"DOMAIN": domain, "DISKS": " ".join(disk["name"] for disk in disks), **of_run, **of_disks}
    return {f"NBDPULL_{name}": value for name, value in found.items()}
