"""undelete: bring back points that were deleted from a bucket."""

from __future__ import annotations

from argparse import Namespace

from ...core.errors import Check, Report
from ...operations.options.points import UndeleteOptions as Options
from .. import terminal, usage
from ..output import Outcome

SUMMARY = "bring back points that were deleted from a bucket"
EXAMPLE = "undelete s3://bucket/vms all --as-of yesterday"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "points", metavar="POINT", nargs="+", help="id or its beginning; with --as-of also all")
    usage.add(parser, Options, "--as-of", metavar="TIME",
              help="bring back what existed at this time (default: each point as it was made)")  # fmt: skip
    usage.add_domain_of_store(parser, Options)
    usage.add_identities(parser, Options)
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import undelete

    result = undelete.undelete(usage.options(Options, args), report, check)
    found = result.points
    lines = [f"{each.point} of {each.domain} is back: {terminal.count(each.files, 'file')} as of {each.as_of}"
             if each.files else f"{each.point} of {each.domain} is unchanged" for each in found]  # fmt: skip
    return Outcome({"points": [each._asdict() for each in found]}, lines, warnings=result.warnings)
