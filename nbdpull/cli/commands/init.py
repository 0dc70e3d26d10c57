"""init: make an empty store."""

from __future__ import annotations

from argparse import Namespace

from ...core.errors import Check, Report
from ...operations.options import InitOptions as Options
from .. import usage
from ..output import Outcome

SUMMARY = "make an empty store"
EXAMPLE = "init dir/ --group backup"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add_group(parser, Options)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import init

    options = usage.options(Options, args)
    made = init.init(options, report, check)
    return Outcome({"uuid": made.uuid}, [f"{options.store} is an empty store now"])
