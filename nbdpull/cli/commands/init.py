"""init: make an empty store."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Optional

from ...core.errors import Check, Report
from ...operations.options import InitOptions as Options
from .. import usage
from ..output import Outcome

SUMMARY = "make an empty store"
EXAMPLE = "init dir/ --recipient age1…"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add_group(parser, Options)
    usage.add_recipients(parser, Options)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import init

    options = usage.options(Options, args)
    made = init.init(options, report, check)
    return Outcome({"uuid": made.uuid, "master": made.master}, _lines(options.store, made.master))


def _lines(store: str, master: Optional[str]) -> Iterator[str]:
    if master is None:
        yield f"{store} is an empty store now"
        return
    yield f"{store} is an empty store now, sealed with master key {master}"
    yield "whoever loses all that opens it loses the backups: see nbdpull key test, nbdpull key export"
