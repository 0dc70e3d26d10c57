"""compare: which points two stores have."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core import errors
from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.stores import CompareOptions as Options
from .. import terminal, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.compare import Domain

SUMMARY = "show which points two stores have"
EXAMPLE = "compare dir/ /mnt/usb/store"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "dest", metavar="DEST", help="the other store")
    usage.add_domains(parser, Options)
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import compare

    found = compare.compare(usage.options(Options, args), report, check)
    values = {
        "differs": found.differs,
        "domains": [
            {
                "domain": each.domain,
                "problem": str(each.problem) if each.problem else None,
                "points": [{"id": point, "where": where, "behind": behind} for point, where, behind in each.points],
                "behind_points": each.behind,
                "behind_bytes": each.behind_bytes,
            }
            for each in found.domains
        ],
    }
    code = next((error.exit_code for error in found.errors), errors.Differs.exit_code if found.differs else 0)
    complaints = [f"{each.domain}: {each.problem}" for each in found.domains if each.problem]
    return Outcome(values, _lines(found.domains), code, complaints=complaints, warnings=found.warnings)


_WORDS = {"both": "in both", "different": "in both, DIFFERENT", "dir": "only in DIR", "dest": "only in DEST"}


def _lines(domains: list[Domain]) -> Iterator[str]:
    """Yield a table for each domain, newest point last, and by how much DEST is behind."""
    for domain in domains:
        yield f"{domain.domain}:"
        if domain.points:
            rows = [
                (each.point, _WORDS[each.where] + (", to be copied" if each.behind else "")) for each in domain.points
            ]
            yield from terminal.table(("POINT", "WHERE"), rows)
        behind = f"DEST is {terminal.count(domain.behind, 'point')} behind ({size(domain.behind_bytes)} to copy)"
        if domain.problem:
            yield f"{behind}, and perhaps more" if domain.behind else "It is unknown whether DEST is behind"
        else:
            yield behind if domain.behind else "DEST is not behind"
        yield ""
