"""prune: remove the points that a policy does not keep."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options import PruneOptions as Options
from .. import removed, terminal, types, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.prune import Pruned

SUMMARY = "remove the points that a policy does not keep"
EXAMPLE = "prune dir/ --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run"

_RULES = {
    "last": "the last N points of each domain",
    "hourly": "the newest point of each of the last N hours that have one",
    "daily": "the same of days",
    "weekly": "of weeks, which begin on Monday",
    "monthly": "of months",
    "yearly": "of years",
}


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "--domain", metavar="D", help="only this domain, or those that fit a pattern: 'web*'")
    rules = parser.add_argument_group("what is kept; of several, what any of them keeps")
    for rule, text in _RULES.items():
        rules.add_argument(f"--keep-{rule}", metavar="N", type=types.in_range(0, 1_000_000), help=text)
    rules.add_argument("--keep-within", metavar="T", type=types.duration,
                       help="all points that are at most so much older than the newest: 14d")  # fmt: skip
    usage.add(rules, Options, "--time-zone", metavar="ZONE", help="of hours and days, such as Europe/Berlin")
    usage.add(parser, Options, "--force", action="store_true",
              help="go on where more than half of a domain's points would go")  # fmt: skip
    removed.add_how(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import prune

    options = usage.options(Options, args)
    found = prune.prune(options, report, check)
    values = {
        "dry_run": options.dry_run,
        "policy": found.policy.members,
        "domains": [_members(each) for each in found.domains],
    }
    code = errors.StoreError.exit_code if found.is_bad else 0
    complaints = [f"{each.domain}: {each.problem}" for each in found.domains if each.problem]
    return Outcome(values, _lines(found.domains, options.dry_run, str(found.policy)), code, complaints=complaints)


def _members(pruned: Pruned) -> dict[str, Any]:
    return {
        "domain": pruned.domain,
        "problem": pruned.problem or None,
        "points": [
            {"id": each.id, "created": pruned.created[each.id].isoformat(), "kept_by": each.kept_by}
            for each in pruned.decisions
        ],
        "removed": pruned.removed,
        **removed.members(pruned.swept),
    }


def _lines(domains: list[Pruned], dry_run: bool, policy: str) -> Iterator[str]:
    """A table for each domain, the newest last."""
    verb = "would be removed" if dry_run else "removed"
    for domain in domains:
        yield f"{domain.domain}:"
        if domain.decisions:
            rows = [(each.id, _why(each.kept_by)) for each in domain.decisions]
            yield from terminal.table(("POINT", "KEPT BY"), rows)
        if not domain.problem:
            yield f"{len(domain.removed)} of {terminal.count(len(domain.decisions), 'point')} {verb} ({policy})"
            yield from removed.lines(domain.swept, dry_run)
        yield ""


_REASONS = {
    "newest": "the newest",
    "newest-sound": "the newest sound one",
    "newest-verified": "the newest verified one",
    "newest-drilled": "the newest drilled one",
}


def _why(kept_by: dict[str, str]) -> str:
    return ", ".join(_REASONS.get(rule, f"{rule} {told}".strip()) for rule, told in kept_by.items()) or "-"
