"""list: the points of a store."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.points import ListOptions as Options
from .. import terminal, types, usage
from ..output import Outcome

SUMMARY = "list the points of a store"
EXAMPLE = "list dir/ --last 5"


def add(parser: usage.Parser) -> None:
    parser.takes_cache()
    usage.add_store(parser, Options)
    usage.add(parser, Options, "--domain", metavar="D", help="only this domain, by its name or UUID")
    parser.add_argument("--last", metavar="N", type=types.in_range(1, 1_000_000),
                        help="only the last N points of each domain")  # fmt: skip
    usage.add_as_of(parser, Options)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--wide", action="store_true", help="full ids, and more columns than fit into 80 characters")
    usage.add_json(shown, "one JSON array")


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import listing

    found = listing.listing(usage.options(Options, args), report, check)
    code = max((error.exit_code for error in found.refused), default=0)
    points = [point for group in _by_domain(found.points) for point in group[-getattr(args, "last", 0) :]]
    lines = _wide(points) if getattr(args, "wide", False) else _narrow(points, found.short_ids)
    return Outcome(points, lines, code, warnings=[*map(str, found.refused), *found.warnings])


def _by_domain(points: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Group points by uuid, as a domain may have been renamed."""
    return (list(group) for _, group in groupby(points, lambda point: point["uuid"]))


def _narrow(points: list[dict[str, Any]], ids: dict[str, str]) -> Iterator[str]:
    """Yield a table for each domain, with lines of at most 80 characters. ids: the short id of each point."""
    headings = ("POINT", "MODE", "DISKS", "STORED", "VERIFIED", "DRILLED")
    for group in _by_domain(points):
        rows = [(ids[point["id"]], _mode(point), str(len(point["disks"])), size(_stored([point])),
                 terminal.proof(point["verified"]), terminal.short_finding(point["drilled"]))
                for point in group]  # fmt: skip
        yield from [f"{group[-1]['domain']}:", *terminal.table(headings, rows), ""]
    yield _totals(points)


def _mode(point: dict[str, Any]) -> str:
    """Return the mode of a point's disks; "partial" if they do not make whole images."""
    modes = {disk["mode"] for disk in point["disks"]}
    return "partial" if point["partial"] else "mixed" if len(modes) > 1 else terminal.mode(*modes)


def _stored(points: list[dict[str, Any]]) -> int:
    return sum(disk["stored_bytes"] for point in points for disk in point["disks"])


def _totals(points: list[dict[str, Any]]) -> str:
    return f"{terminal.count(len(points), 'point')}, {size(_stored(points))} stored"


def _wide(points: list[dict[str, Any]]) -> Iterator[str]:
    headings = ("DOMAIN", "POINT", "AS OF", "PARENT", "CHECKPOINT", "DISKS", "STORED", "VERIFIED", "DRILLED")
    yield from [*terminal.table(headings, [_row(point) for point in points]), "", _totals(points)]


def _row(point: dict[str, Any]) -> tuple[str, ...]:
    shown = ",".join(f"{disk['name']}:{disk['mode']}" for disk in point["disks"])
    as_of = point["as_of"] or f"before {point['created']}"
    named = (point["domain"], point["id"], as_of, terminal.parent(point), point["checkpoint"] or "-")
    found = (terminal.finding(point.get("verified")), terminal.finding(point.get("drilled")))
    return (*named, shown, size(_stored([point])), *found)
