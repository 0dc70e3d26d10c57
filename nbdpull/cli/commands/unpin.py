"""unpin: let policies remove a point again."""

from __future__ import annotations

from argparse import Namespace

from ...core.errors import Check, Report
from ...operations.options.points import PinOptions as Options
from .. import usage
from ..output import Outcome

SUMMARY = "let a policy remove a pinned point again"
EXAMPLE = "unpin dir/ 20261122T194500Z-7f3a9c04"


def add(parser: usage.Parser) -> None:
    usage.add_named_point(parser, Options)
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import unpin

    found = unpin.unpin(usage.options(Options, args), report, check)
    line = f"{found.point} is not pinned" + (" any more" if found.was_pinned else "")
    return Outcome({"point": found.point, "pinned": False, "changed": found.was_pinned}, [line], domain=found.domain)
