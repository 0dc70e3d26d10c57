"""plan: show what a pull would read."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.domains import KubevirtPlanOptions as Kubevirt
from ...operations.options.domains import PlanOptions as Options
from .. import machines, terminal, usage
from ..output import Outcome

SUMMARY = "show what a pull would read, and leave nothing behind"
EXAMPLE = "plan vm1 -o dir/"


def add(parser: usage.Parser) -> None:
    machines.add_domain(parser, Options)
    usage.add(parser, Options, "-o", "--output", metavar="DIR", help="the store that the pull would go to; only read")
    base = parser.add_mutually_exclusive_group()
    usage.add(base, Options, "--since", metavar="CHECKPOINT", help="what changed since this checkpoint")
    usage.add(base, Options, "--full", action="store_true", help="everything")
    usage.add_connect(parser, Options)
    usage.add_choice_of_disks(parser, Options)
    usage.add_scratch(parser, Options)
    usage.add_route(parser, Options)
    usage.add_threads(parser, Options)
    machines.add_cluster(parser, Kubevirt)
    usage.add_identities(parser, Options)
    usage.add_json(parser)


_KINDS = machines.Kinds("plan", Options, Kubevirt)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    _KINDS.require(args)
    found = (_of_machine if machines.is_one(args.domain) else _of_domain)(args, report, check)
    return Outcome(found, _lines(found), domain=found["domain"], warnings=found["warnings"])


def _of_domain(args: Namespace, report: Report, check: Check) -> dict[str, Any]:
    from ...operations import plan

    return vars(plan.plan(usage.options(Options, args), report, check))


def _of_machine(args: Namespace, report: Report, check: Check) -> dict[str, Any]:
    from ...operations import kubevirt_plan

    return vars(kubevirt_plan.kubevirt_plan(usage.options(Kubevirt, args), report, check))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    headings = ("DISK", "MODE", "REASON", "SIZE", "DIRTY", "DATA", "EST. STORED")
    counts = ("size", "dirty_bytes", "data_bytes", "stored_bytes_estimate")
    rows = [
        (d["name"], terminal.mode(d["mode"]), d["reason"],
         *("?" if d[count] is None else size(d[count]) for count in counts)) for d in found["disks"]
    ]  # fmt: skip
    since = f"since {found['since']}" if found["since"] else "in full"
    yield from [f"{found['domain']}, {since}:", "", *terminal.table(headings, rows), ""]
    known = found["seconds"] is not None
    yield f"about {found['seconds']} s" if known else "Only a backup shows how much that is, and none was made."
