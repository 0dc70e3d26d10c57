"""digest: one value for the content of each disk of a point."""

from __future__ import annotations

from argparse import Namespace

from ...core.errors import Check, Report
from ...operations.options.restores import DigestOptions as Options
from .. import terminal, usage
from ..output import Outcome

SUMMARY = "show one value for the content of each disk of a point"
EXAMPLE = "digest dir/ --point all"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add_domain_of_store(parser, Options)
    usage.add_point(parser, Options, "id or its beginning, date, latest: see nbdpull list; or all")
    usage.add_disks(parser, Options)
    usage.add_no_record(parser, Options)
    usage.add_readers(parser, Options)
    usage.add_identities(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import digest

    found = digest.digest(usage.options(Options, args), report, check)
    points = [{"id": point.id, "disks": disks} for point, disks in found.points]
    rows = [(point.id, disk, value) for point, disks in found.points for disk, value in disks.items()]
    lines = terminal.table(("POINT", "DISK", "DIGEST"), rows)
    return Outcome({"points": points}, lines, domain=found.domain, warnings=found.warnings)
