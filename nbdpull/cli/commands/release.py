"""release: remove nbdpull's checkpoints and bitmaps from a domain."""

from __future__ import annotations

from argparse import Namespace

from ...core import errors
from ...core.errors import Check
from ...operations.options import ReleaseOptions as Options
from .. import terminal, usage
from ..output import Outcome, Report

SUMMARY = "remove nbdpull's checkpoints and bitmaps from a domain"
EXAMPLE = "release vm1"


def add(parser: usage.Parser) -> None:
    usage.add(parser, Options, "domain", metavar="DOMAIN")
    usage.add_connect(parser, Options)
    usage.add_dry_run(parser, Options)
    usage.add_stall_timeout(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import release

    options = usage.options(Options, args)
    result = release.release(options, report, check)
    lines = terminal.leftovers(result.found) or ["nothing to release"]
    if any(not item.left for item in result.found):
        lines.append("The next pull into each store reads every disk in full.")
    code = errors.HypervisorError.exit_code if any(item.left for item in result.found) and not options.dry_run else 0
    return Outcome({"found": [vars(item) for item in result.found]}, lines, code, domain=result.domain)
