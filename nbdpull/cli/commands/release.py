"""release: remove nbdpull's checkpoints and bitmaps from a domain."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options.domains import KubevirtReleaseOptions as Kubevirt
from ...operations.options.domains import ReleaseOptions as Options
from .. import leftovers, machines, usage
from ..leftovers import Leftover
from ..output import Outcome

SUMMARY = "remove nbdpull's checkpoints and bitmaps from a domain"
EXAMPLE = "release vm1"


def add(parser: usage.Parser) -> None:
    machines.add_domain(parser, Options)
    usage.add_connect(parser, Options)
    usage.add_dry_run(parser, Options)
    usage.add_stall_timeout(parser, Options)
    machines.add_cluster(parser, Kubevirt)
    usage.add_output(parser)


_AFTER = "The next pull into each store reads every disk in full."
_KINDS = machines.Kinds("release", Options, Kubevirt)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    _KINDS.require(args)
    dry_run = getattr(args, "dry_run", False)
    domain, found = (_of_machine if machines.is_one(args.domain) else _of_domain)(args, report, check)
    return leftovers.outcome(found, dry_run, domain, "nothing to release", errors.HypervisorError.exit_code, _AFTER)


def _of_domain(args: Namespace, report: Report, check: Check) -> tuple[str, Sequence[Leftover]]:
    from ...operations import release

    result = release.release(usage.options(Options, args), report, check)
    return result.domain, result.found


def _of_machine(args: Namespace, report: Report, check: Check) -> tuple[str, Sequence[Leftover]]:
    from ...operations import kubevirt_release

    result = kubevirt_release.kubevirt_release(usage.options(Kubevirt, args), report, check)
    return result.domain, result.found
