"""drill: boot a point as a temporary VM, and record whether it comes up."""

from __future__ import annotations

from argparse import Namespace

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options.restores import DrillOptions as Options
from .. import types, usage
from ..output import Outcome

SUMMARY = "boot a point as a temporary VM, and record whether it comes up"
EXAMPLE = "drill dir/"


def add(parser: usage.Parser) -> None:
    usage.add_chosen_point(parser, Options)
    usage.add_connect(parser, Options, "libvirt to boot it with, on this machine")
    usage.add(parser, Options, "--expect", metavar="REGEX",
              help="ready when the serial console shows this (default: when the agent answers)")  # fmt: skip
    usage.add(parser, Options, "--timeout", metavar="T", type=types.duration, help="how long to wait for that")
    usage.add(parser, Options, "--work-dir", metavar="DIR", help="directory for what the guest writes meanwhile")
    usage.add_no_record(parser, Options)
    usage.add_identities(parser, Options)
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
        lines += ["the console ended with:", *found.console.rstrip().split("\n")] if found.console.strip() else []
    return Outcome(values, lines, code, domain=found.point.manifest.domain, warnings=found.warnings)
