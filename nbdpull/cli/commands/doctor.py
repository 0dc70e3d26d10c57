"""doctor: are the host and a domain ready for pulls?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core.errors import Check, Report
from ...operations.options import DoctorOptions as Options
from .. import usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.doctor import Result

SUMMARY = "check that the host and a domain are ready for pulls, and suggest fixes"
EXAMPLE = "doctor vm1"


def add(parser: usage.Parser) -> None:
    usage.add(parser, Options, "domain", metavar="DOMAIN", nargs="?", help="check this domain and its disks, too")
    usage.add_connect(parser, Options)
    usage.add_scratch(parser, Options)
    parser.add_argument("--json", action="store_true", help="one JSON array")


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import doctor

    found = doctor.doctor(usage.options(Options, args), report, check)
    code = max((each.exit_code for each in found.findings), default=0)
    return Outcome([vars(each) for each in found.findings], _lines(found), code)


def _lines(found: Result) -> Iterator[str]:
    for each in found.findings:
        yield f"{each.state:5} {each.subject}: {each.text}"
        if each.advice:
            yield f"      -> {each.advice}"
