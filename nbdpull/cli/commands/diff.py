"""diff: the ranges in which two points of a domain differ."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.points import DiffOptions as Options
from .. import terminal, usage
from ..output import Outcome

SUMMARY = "list what differs between two points"
EXAMPLE = "diff dir/ 20261121 latest --disk vda"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "before", metavar="A", help=usage.POINT)
    usage.add(parser, Options, "after", metavar="B", help="the same for the other point; the list shows what B has")
    usage.add_domain_of_store(parser, Options)
    usage.add(parser, Options, "--disk", metavar="D", help="only this disk")
    usage.add_identities(parser, Options)
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import diff

    found = diff.diff(usage.options(Options, args), report, check)
    values = {
        "domain": found.domain,
        "before": found.before,
        "after": found.after,
        "ranges": [each._asdict() for each in found.ranges],
        "only_before": found.gone,
        "only_after": found.new,
    }
    return Outcome(values, _lines(values), domain=found.domain)


def _lines(values: dict[str, Any]) -> list[str]:
    ranges = values["ranges"]
    rows = [(each["disk"], str(each["offset"]), str(each["length"]), each["kind"]) for each in ranges]
    lines = terminal.table(("DISK", "OFFSET", "LENGTH", "KIND"), rows) + [""] if rows else []
    for name, which in (("only_before", "before"), ("only_after", "after")):
        lines += [f"disk {disk} is only in {values[which]}" for disk in values[name]]
    total = sum(each["length"] for each in ranges)
    differ = f"{size(total)} in {terminal.count(len(ranges), 'range')}" if ranges else "no difference"
    return [*lines, f"{values['before']} to {values['after']}: {differ}"]
