"""list: the points of a store."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ...core.errors import Check
from ...core.sizes import shown as size
from ...operations.options import ListOptions as Options
from .. import usage
from ..output import Outcome, Report

SUMMARY = "list the points of a store"
EXAMPLE = "list dir/ --json"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    parser.add_argument("--json", action="store_true", help="one JSON array")


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import listing

    points, refused = listing.points(usage.options(Options, args).store)
    code = max((error.exit_code for error in refused), default=0)
    return Outcome(points, _lines(points), code, warnings=[str(error) for error in refused])


def _lines(points: list[dict[str, Any]]) -> Iterator[str]:
    from .. import terminal

    headings = ("DOMAIN", "POINT", "AS OF", "PARENT", "CHECKPOINT", "DISKS", "STORED", "VERIFIED", "DRILLED")
    yield from terminal.table(headings, [_row(point) for point in points])


def _row(point: dict[str, Any]) -> tuple[str, ...]:
    from .. import terminal

    shown = ",".join(f"{disk['name']}:{disk['mode']}" for disk in point["disks"])
    stored = size(sum(disk["stored_bytes"] for disk in point["disks"]))
    as_of = point["as_of"] or f"before {point['created']}"
    named = (point["domain"], point["id"], as_of, terminal.parent(point), point["checkpoint"] or "-")
    return (*named, shown, stored, terminal.finding(point.get("verified")), terminal.finding(point.get("drilled")))
