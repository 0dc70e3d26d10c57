"""remove: remove points that are no longer needed."""

from __future__ import annotations

from argparse import Namespace

from ...core.errors import Check, Report
from ...operations.options.points import RemoveOptions as Options
from .. import removed, usage
from ..output import Outcome

SUMMARY = "remove points; all others still restore"
EXAMPLE = "remove dir/ 20261122T194500Z-7f3a9c04"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "points", metavar="POINT", nargs="+", help=usage.POINT)
    usage.add_domain_of_store(parser, Options)
    removed.add_how(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import remove

    options = usage.options(Options, args)
    found = remove.remove(options, report, check)
    values = {"dry_run": options.dry_run, "points": found.points, **removed.members(found.swept)}
    verb = "would be removed" if options.dry_run else "removed"
    lines = [f"{name}: {verb}" for name in found.points]
    return Outcome(values, [*lines, *removed.lines(found.swept, options.dry_run)], domain=found.domain,
                   warnings=found.swept.warnings)  # fmt: skip
