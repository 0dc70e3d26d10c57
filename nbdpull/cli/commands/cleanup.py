"""cleanup: remove what a run that died left behind."""

from __future__ import annotations

from argparse import Namespace

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options import CleanupOptions as Options
from .. import leftovers, usage
from ..output import Outcome

SUMMARY = "remove what an interrupted pull left behind"
EXAMPLE = "cleanup vm1 -o dir/"


def add(parser: usage.Parser) -> None:
    usage.add(parser, Options, "domain", metavar="DOMAIN", help="name of the libvirt domain")
    usage.add(parser, Options, "-o", "--output", metavar="DIR", help="the store, to clean up as well")
    usage.add_connect(parser, Options)
    usage.add_dry_run(parser, Options)
    usage.add_stall_timeout(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import cleanup

    options = usage.options(Options, args)
    result = cleanup.cleanup(options, report, check)
    code = errors.Busy.exit_code
    return leftovers.outcome(result.found, options.dry_run, result.domain, "nothing to clean up", code)
