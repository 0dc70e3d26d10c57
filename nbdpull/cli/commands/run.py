"""run: pass a backup's blocks to a command."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ...core.choices import Offline, OnLostBase, Quiesce
from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.exports import RunOptions as Options
from .. import terminal, types, usage
from ..output import Outcome

SUMMARY = "run a command that reads the changed blocks over NBD"
EXAMPLE = "run vm1 --since vm1.token --token vm1.token -- ./take-blocks"


def add(parser: usage.Parser) -> None:
    parser.takes_command("nbdpull run DOMAIN [OPTION]... -- COMMAND [ARGUMENT]...")
    usage.add(parser, Options, "domain", metavar="DOMAIN", help="name of the libvirt domain")
    usage.add(parser, Options, "--since", metavar="FILE",
              help="what changed since the backup whose token is in FILE; everything if there is no FILE")  # fmt: skip
    usage.add(parser, Options, "--token", metavar="FILE",
              help="write the token of this backup to FILE if the command succeeds")  # fmt: skip
    usage.add(parser, Options, "--on-lost-base", choices=OnLostBase.WORDS,
              help="if a disk's base is lost: read it in full, or fail")  # fmt: skip
    usage.add(parser, Options, "--offline", choices=Offline.WORDS, help="a domain that is off: as for pull")
    usage.add(parser, Options, "--quiesce", nargs="?", choices=Quiesce.WORDS, const=Quiesce.REQUIRE,
              help="freeze the guest's file systems while the backup starts: as for pull")  # fmt: skip
    usage.add(parser, Options, "--freeze-timeout", metavar="S", type=types.in_range(5, 60),
              help="seconds that the freeze may last")  # fmt: skip
    usage.add_connect(parser, Options)
    usage.add_choice_of_disks(parser, Options)
    usage.add_scratch(parser, Options)
    usage.add(parser, Options, "--scratch-limit", metavar="N", type=types.size,
              help="end a backup whose scratch space grows beyond this")  # fmt: skip
    usage.add_route(parser, Options)
    usage.add_stall_timeout(parser, Options)
    usage.add(parser, Options, "--max-duration", metavar="T", type=types.duration,
              help="end a backup that takes longer")  # fmt: skip
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import run as operation

    to = 2 if getattr(args, "json", False) else None  # standard output is for the events
    options = usage.options(Options, args, environment=dict(os.environ), stdout=to)
    found = operation.run(options, report, check)
    values = {name: value for name, value in vars(found).items() if name not in ("domain", "warnings")}
    return Outcome(values, _lines(found), domain=found.domain, warnings=found.warnings)


def _lines(found: Any) -> Iterator[str]:
    yield f"{found.domain}: backup {found.run} is committed"
    rows = [(disk["name"], terminal.mode(disk["mode"]), disk["reason"], size(disk["size"])) for disk in found.disks]
    yield from ["", *terminal.table(("DISK", "MODE", "REASON", "SIZE"), rows)]
    if found.token:
        yield from ["", f"token: {found.token}"]
