"""usage: show the space that the points of a store take."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.points import UsageOptions as Options
from .. import terminal, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.usage import OfDomain

SUMMARY = "show the space that the points of a store take"
EXAMPLE = "usage dir/"

_HEADINGS = ("POINT", "IMAGES", "EXCLUSIVE", "SHARED", "DEAD")
_TOTALS = ("stored", "exclusive", "shared", "dead", "waiting")


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add_domains(parser, Options)
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import usage as operation

    found = operation.usage(usage.options(Options, args), report, check)
    domains = [_members(each) for each in found.domains]
    sums = {f"{name}_bytes": sum(each[f"{name}_bytes"] or 0 for each in domains) for name in _TOTALS}
    problems = [each.problem for each in found.domains if each.problem]
    return Outcome(
        {"domains": domains, **sums},
        _lines(domains, sums, found.short_ids),
        max((error.exit_code for error in problems), default=0),
        complaints=[f"{each.domain}: {each.problem}" for each in found.domains if each.problem],
    )


def _members(of: OfDomain) -> dict[str, Any]:
    used = of.used
    return {
        "domain": of.domain,
        "problem": str(of.problem) if of.problem else None,
        "points": [
            {
                "id": each.point.id,
                "created": each.point.manifest.created,
                "image_bytes": each.images,
                "exclusive_bytes": each.exclusive,
                "shared_bytes": each.shared,
                "dead_bytes": each.dead,
            }
            for each in (used.points if used else [])
        ],
        "left_bytes": used and used.left,
        **{f"{name}_bytes": getattr(used, name) if used else None for name in _TOTALS},
    }


def _lines(domains: list[dict[str, Any]], sums: dict[str, int], ids: dict[str, str]) -> Iterator[str]:
    """Yield a table for each domain, with lines of at most 80 characters."""
    for each in domains:
        if each["problem"]:
            continue
        yield f"{each['domain']}:"
        yield from terminal.table(_HEADINGS, [*_rows(each, ids)])
        yield ""
    stored, dead, waiting = (size(sums[f"{name}_bytes"]) for name in ("stored", "dead", "waiting"))
    yield f"{stored} stored, {dead} dead ({waiting} of it in removed points)"


def _rows(each: dict[str, Any], ids: dict[str, str]) -> Iterator[tuple[str, ...]]:
    counts = ("image_bytes", "exclusive_bytes", "shared_bytes", "dead_bytes")
    for point in each["points"]:
        yield ids[point["id"]], *(size(point[name]) for name in counts)
    if each["left_bytes"] or each["waiting_bytes"]:
        dead = each["dead_bytes"] - sum(point["dead_bytes"] for point in each["points"])
        yield "(removed)", "-", "-", size(each["left_bytes"]), size(dead)
    images = sum(point["image_bytes"] for point in each["points"])
    yield "total", size(images), *(size(each[name]) for name in counts[1:])
