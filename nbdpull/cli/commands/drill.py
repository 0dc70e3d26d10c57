"""drill: boot a point, see that it comes up, and throw it away."""

from __future__ import annotations

from argparse import Namespace

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options import DrillOptions as Options
from .. import types, usage
from ..output import Outcome

SUMMARY = "boot a point, see that it comes up, and throw it away"
EXAMPLE = "drill dir/"


def add(parser: usage.Parser) -> None:
    usage.add_chosen_point(parser, Options)
    usage.add_connect(parser, Options, "libvirt of this machine to boot it with")
    usage.add(parser, Options, "--expect", metavar="REGEX",
              help="ready when the serial console shows this (default: when the agent answers)")  # fmt: skip
    usage.add(parser, Options, "--timeout", metavar="T", type=types.duration, help="how long to wait for that")
    usage.add(parser, Options, "--work-dir", metavar="DIR", help="for what the guest writes meanwhile")
    usage.add_no_record(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import drill

    found = drill.drill(usage.options(Options, args), report, check)
    values = {
        "point": found.point.id,
        "when": found.when,
        "who": found.who,
        "verdict": found.verdict,
        "reason": found.reason,
        "seconds": found.seconds,
        "waited_for": found.waited_for,
        "console": found.console,
        "screenshot": found.screenshot_path,
    }
    if found.verdict == drill.OK:
        lines, code = [f"point {found.point.id} was up after {found.seconds} s"], 0
    else:
        lines, code = [f"FAILED point {found.point.id}: {found.reason}"], errors.DrillFailed.exit_code
        lines += ["its console ends so:", *found.console.rstrip().split("\n")] if found.console.strip() else []
    return Outcome(values, lines, code, domain=found.point.manifest.domain, warnings=found.warnings)
