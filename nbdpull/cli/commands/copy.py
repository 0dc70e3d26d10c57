"""copy: copy the points that another store lacks."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.stores import CopyOptions as Options
from .. import rules, terminal, types, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.copy import Domain

SUMMARY = "copy points to another store"
EXAMPLE = "copy dir/ /mnt/usb/store"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "dest", metavar="DEST", help="the other store; created if it does not exist")
    usage.add_domains(parser, Options)
    usage.add(parser, Options, "--point", metavar="ID", dest="points", action="append",
              help="this point, however old (may be repeated); all: every point that DEST lacks")  # fmt: skip
    rules.add(parser, Options, "which of the points are copied")
    usage.add(
        parser, Options, "--max-rate", metavar="R", type=types.size, help="limit reading: bytes/s, 64M for 64 MiB/s"
    )
    usage.add(parser, Options, "--max-duration", metavar="T", type=types.duration,
              help="stop after this time: 90s, 15m, 2h; the next copy continues")  # fmt: skip
    usage.add(parser, Options, "--dry-run", action="store_true", help="show what would be copied, copy nothing")
    usage.add_identities(parser, Options)
    usage.add(parser, Options, "--dest-identity", metavar="FILE", dest="dest_identities", action="append",
              help="what opens DEST, if it has another key (may be repeated; default: as for DIR)")  # fmt: skip
    usage.add(parser, Options, "--unseal", action="store_true", help="let DEST be a store that is not sealed")
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import copy

    options = usage.options(Options, args)
    found = copy.copy(options, report, check)
    values = {"dry_run": options.dry_run, "domains": [_members(each) for each in found.domains]}
    complaints = [text for each in found.domains for text in _complaints(each)]
    code = next((error.exit_code for error in found.errors), 0)
    lines = _lines(found.domains, options.dry_run)
    return Outcome(values, lines, code, warnings=found.warnings, complaints=complaints)


def _members(domain: Domain) -> dict[str, Any]:
    return {
        "domain": domain.domain,
        "problem": str(domain.problem) if domain.problem else None,
        "copied": [{"point": each.point, "files": each.files, "copied_bytes": each.bytes} for each in domain.copied],
        "refused": [{"point": each.point, "problem": str(each.error)} for each in domain.refused],
        "same": domain.same,
        "older": domain.older,
    }


def _complaints(domain: Domain) -> Iterator[str]:
    if domain.problem:
        yield f"{domain.domain}: {domain.problem}"
    yield from (f"{domain.domain}: point {each.point} is not copied: {each.error}" for each in domain.refused)


def _lines(domains: list[Domain], dry_run: bool) -> Iterator[str]:
    """Yield one line for each domain."""
    verb = "would be copied" if dry_run else "copied"
    for domain in domains:
        if domain.problem and not domain.copied:
            continue
        files, moved = (sum(counts) for counts in zip((0, 0), *((one.files, one.bytes) for one in domain.copied)))
        parts = [f"{terminal.count(len(domain.copied), 'point')} {verb}"]
        parts[0] += f" ({size(moved)} in {terminal.count(files, 'file')})" if files else ""
        parts += [f"{len(domain.same)} there already"] if domain.same else []
        parts += [f"{len(domain.older)} older left out (--point all copies them)"] if domain.older else []
        yield f"{domain.domain}: {', '.join(parts)}"
