"""prune: remove the points that a policy does not keep."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options.stores import PruneOptions as Options
from .. import pruned, removed, rules, terminal, types, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.prune import Pruned

SUMMARY = "remove the points that a policy does not keep"
EXAMPLE = "prune dir/ --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add_domains(parser, Options)
    rules.add(parser, Options)
    usage.add(parser, Options, "--force", action="store_true",
              help="continue even if more than half of a domain's points would be removed")  # fmt: skip
    usage.add(parser, Options, "--repack-below", metavar="X%", type=types.share_or_none,
              help="repack files of removed points if less than this share is needed; 0: never")  # fmt: skip
    usage.add(parser, Options, "--repack-limit", metavar="N", type=types.size,
              help="move at most this many bytes of each domain: 10G")  # fmt: skip
    removed.add_how(parser, Options)
    usage.add_identities(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import prune

    options = usage.options(Options, args)
    found = prune.prune(options, report, check)
    values = {"dry_run": options.dry_run, "domains": [pruned.members(each) for each in found.domains]}
    code = errors.StoreError.exit_code if found.is_bad else 0
    complaints = [f"{each.domain}: {each.problem}" for each in found.domains if each.problem]
    warnings = [text for each in found.domains for text in prune.problems(each)]
    return Outcome(values, _lines(found.domains, options.dry_run), code, warnings=warnings, complaints=complaints)


def _lines(domains: list[Pruned], dry_run: bool) -> Iterator[str]:
    """Yield a table for each domain, newest point last."""
    for domain in domains:
        yield f"{domain.domain}:"
        if domain.decisions:
            rows = [(each.id, _why(each.kept_by)) for each in domain.decisions]
            yield from terminal.table(("POINT", "KEPT BY"), rows)
        if domain.removed or not domain.problem:
            yield from pruned.lines(domain, dry_run)
        yield ""


_REASONS = {
    "newest": "the newest",
    "newest-sound": "the newest sound one",
    "newest-verified": "the newest verified one",
    "newest-drilled": "the newest drilled one",
}


def _why(kept_by: dict[str, str]) -> str:
    return ", ".join(_REASONS.get(rule, f"{rule} {period}".strip()) for rule, period in kept_by.items()) or "-"
