"""doctor: check whether the host and a domain are ready for pulls."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Union

from ...core.errors import Check, Report
from ...operations.options.domains import DoctorOptions as Options
from ...operations.options.domains import KubevirtDoctorOptions as Kubevirt
from .. import machines, terminal, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.doctor import Result
    from ...operations.kubevirt_doctor import Result as OfMachine

    Found = Union[Result, OfMachine]

SUMMARY = "check that the host and a domain are ready for pulls, and suggest fixes"
EXAMPLE = "doctor vm1"


def add(parser: usage.Parser) -> None:
    usage.add(
        parser,
        Options,
        "domain",
        metavar="DOMAIN",
        nargs="?",
        help="check this domain and its disks, too; or kubevirt:NAMESPACE/VM and its cluster",
    )
    usage.add_connect(parser, Options)
    usage.add_scratch(parser, Options)
    machines.add_cluster(parser, Kubevirt)
    usage.add_json(parser, "one JSON array")


_KINDS = machines.Kinds("doctor", Options, Kubevirt)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    _KINDS.require(args)
    is_machine = machines.is_one(getattr(args, "domain", None))
    found = (_of_machine if is_machine else _of_domain)(args, report, check)
    code = max((each.exit_code for each in found.findings), default=0)
    return Outcome([vars(each) for each in found.findings], _lines(found), code)


def _of_domain(args: Namespace, report: Report, check: Check) -> Found:
    from ...operations import doctor

    return doctor.doctor(usage.options(Options, args), report, check)


def _of_machine(args: Namespace, report: Report, check: Check) -> Found:
    from ...operations import kubevirt_doctor

    return kubevirt_doctor.kubevirt_doctor(usage.options(Kubevirt, args), report, check)


def _lines(found: Found) -> Iterator[str]:
    for each in found.findings:
        yield from terminal.folded(f"{each.state:5} ", f"{each.subject}: {each.text}")
        if each.advice:
            yield f"      -> {each.advice}"  # on one line: it may be a command to copy
