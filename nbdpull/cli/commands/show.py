"""show: show one point in full."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ...core.errors import Check, Report
from ...operations.options.points import ShowOptions as Options
from .. import terminal, usage
from ..output import Outcome

SUMMARY = "show one point"
EXAMPLE = "show dir/ latest"


def add(parser: usage.Parser) -> None:
    parser.takes_cache()
    usage.add_named_point(parser, Options)
    usage.add_identities(parser, Options)
    shown = parser.add_mutually_exclusive_group()
    usage.add_json(shown)
    usage.add(shown, Options, "--xml", dest="definition", action="store_true",
              help="the domain's definition, as it was stored")  # fmt: skip


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import show

    found = show.show(usage.options(Options, args), report, check)
    if found.point is None:
        return Outcome(text=found.definition, warnings=found.warnings)
    return Outcome(found.point, _lines(found.point), warnings=found.warnings)


def _lines(point: dict[str, Any]) -> Iterator[str]:
    about = {**point, "parent": terminal.parent(point)}
    members = ("id", "domain", "uuid", "as_of", "created", "since", "checkpoint", "parent", "consistency")
    yield from (f"{name + ':':13}{about[name] if about[name] is not None else '-'}" for name in members)
    labels = ["verified:"]
    for text in _verification(point["verified"]):
        yield f"{labels.pop() if labels else '':13}{text}"
    yield f"{'drilled:':13}{terminal.finding(point['drilled'])}"
    if point["pinned"]:
        yield f"{'pinned:':13}{point['pinned']['reason'] or point['pinned']['when']}"
    if locked := point["locked"]:
        yield f"{'locked:':13}until {locked['until']}, {locked['mode']}"
    yield from ["", *terminal.disks(point), *(["", *terminal.omitted(point)] if point["not_in_point"] else [])]


def _verification(found: Any) -> Iterator[str]:
    """Yield everything that verifications found."""
    yield terminal.finding(found)
    if not found:
        return
    if last := found["last"]:
        yield f"last check: {last['when']}, {last['level']}{terminal.part(last)}, by {last['who']}"
    covered = found["covered"]
    yield "everything checked since: " + ", ".join(f"{level} {covered[level] or 'never'}" for level in covered)
