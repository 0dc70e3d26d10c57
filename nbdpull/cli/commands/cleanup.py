"""cleanup: remove what a dead run left behind."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options.domains import CleanupOptions as Options
from ...operations.options.domains import KubevirtCleanupOptions as Kubevirt
from .. import leftovers, machines, usage
from ..leftovers import Leftover
from ..output import Outcome

SUMMARY = "remove what an interrupted pull left behind"
EXAMPLE = "cleanup vm1 -o dir/"


def add(parser: usage.Parser) -> None:
    machines.add_domain(parser, Options)
    usage.add(parser, Options, "-o", "--output", metavar="DIR", help="the store, to clean up as well")
    usage.add_connect(parser, Options)
    usage.add_dry_run(parser, Options)
    usage.add_stall_timeout(parser, Options)
    machines.add_cluster(parser, Kubevirt)
    usage.add_output(parser)


_KINDS = machines.Kinds("cleanup", Options, Kubevirt)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    _KINDS.require(args)
    dry_run = getattr(args, "dry_run", False)
    domain, found = (_of_machine if machines.is_one(args.domain) else _of_domain)(args, report, check)
    return leftovers.outcome(found, dry_run, domain, "nothing to clean up", errors.Busy.exit_code)


def _of_domain(args: Namespace, report: Report, check: Check) -> tuple[str, Sequence[Leftover]]:
    from ...operations import cleanup

    result = cleanup.cleanup(usage.options(Options, args), report, check)
    return result.domain, result.found


def _of_machine(args: Namespace, report: Report, check: Check) -> tuple[str, Sequence[Leftover]]:
    from ...operations import kubevirt_cleanup

    result = kubevirt_cleanup.kubevirt_cleanup(usage.options(Kubevirt, args), report, check)
    return result.domain, result.found
