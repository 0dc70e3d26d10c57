"""release: remove nbdpull's checkpoints and bitmaps from a domain."""

from __future__ import annotations

from argparse import Namespace

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options import ReleaseOptions as Options
from .. import leftovers, usage
from ..output import Outcome

SUMMARY = "remove nbdpull's checkpoints and bitmaps from a domain"
EXAMPLE = "release vm1"


def add(parser: usage.Parser) -> None:
    usage.add(parser, Options, "domain", metavar="DOMAIN", help="name of the libvirt domain")
    usage.add_connect(parser, Options)
    usage.add_dry_run(parser, Options)
    usage.add_stall_timeout(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import release

    options = usage.options(Options, args)
    result = release.release(options, report, check)
    after = "The next pull into each store reads every disk in full."
    code = errors.HypervisorError.exit_code
    return leftovers.outcome(result.found, options.dry_run, result.domain, "nothing to release", code, after)
