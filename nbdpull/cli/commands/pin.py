"""pin: keep a point whatever a policy says."""

from __future__ import annotations

from argparse import Namespace

from ...core.errors import Check, Report
from ...operations.options.points import PinOptions as Options
from .. import usage
from ..output import Outcome

SUMMARY = "keep a point whatever a policy says"
EXAMPLE = "pin dir/ latest --reason upgrade"


def add(parser: usage.Parser) -> None:
    usage.add_named_point(parser, Options)
    usage.add(parser, Options, "--reason", metavar="TEXT", help="the reason, shown in lists")
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import pin

    found = pin.pin(usage.options(Options, args), report, check)
    line = f"{found.point} is pinned" + (" already" if found.was_pinned else "")
    return Outcome({"point": found.point, "pinned": True, "changed": not found.was_pinned}, [line], domain=found.domain)
