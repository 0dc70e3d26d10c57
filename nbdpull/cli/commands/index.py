"""index: the records of a disk of a point, as JSON lines."""

from __future__ import annotations

import json
from argparse import Namespace

from ...core.errors import Check, Report
from ...operations.options.points import IndexOptions as Options
from .. import usage
from ..output import Outcome

SUMMARY = "list the records of a disk of a point, as JSON lines"
EXAMPLE = "index dir/ latest vda"


def add(parser: usage.Parser) -> None:
    usage.add_named_point(parser, Options)
    usage.add(parser, Options, "disk", metavar="DISK")
    usage.add_identities(parser, Options)
    parser.add_argument("--json", action="store_true", help="the default, and the only form")
    parser.add_argument("--rebuild", action="store_true", help="rebuild a lost index or directory from the chunk files")


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    options = usage.options(Options, args)
    if getattr(args, "rebuild", False):
        from ...operations import rebuild

        made = rebuild.rebuild(options, report, check)
        return Outcome(lines=made.paths, warnings=made.warnings)
    from ...operations import index

    return Outcome(lines=map(json.dumps, index.index(options, report, check).records))
