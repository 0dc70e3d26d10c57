"""init: make an empty store."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import Any, Optional

from ...core.errors import Check, Report
from ...operations.options.stores import InitOptions as Options
from .. import locks, usage
from ..output import Outcome

SUMMARY = "create an empty store"
EXAMPLE = "init dir/ --recipient age1…"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add_group(parser, Options)
    usage.add_recipients(parser, Options)
    locks.add(parser, Options)
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import init

    options = usage.options(Options, args)
    made = init.init(options, report, check)
    document = {"uuid": made.uuid, "master": made.master, "object_store": made.object_store,
                "immutable": made.immutable and asdict(made.immutable)}  # fmt: skip
    server = _server(made.object_store) if made.object_store else ()
    lines = chain(_lines(options.store, made.master), server, locks.lines(made.immutable))
    return Outcome(document, lines, warnings=made.warnings)


def _lines(store: str, master: Optional[str]) -> Iterator[str]:
    if master is None:
        yield f"{store} is an empty store now"
        return
    yield f"{store} is an empty store now, sealed with master key {master}"
    yield "if you lose all keys that open it, you lose the backups: see nbdpull key test, nbdpull key export"


def _server(found: dict[str, Any]) -> Iterator[str]:
    """Yield the server's answers that matter to whoever chose it. None: it did not say."""
    checks = "checks" if found["checks_sha256"] else "does not check"
    lock = {True: "can be locked", False: "cannot be locked", None: "may be lockable: unknown"}
    versions = {"Enabled": "are kept", "Suspended": "are no longer kept", None: "may be kept: unknown"}
    yield f"the server ({found['server'] or 'no name'}) creates each name once, and {checks} SHA-256"
    yield f"objects {lock[found['object_lock']]}; old versions {versions.get(found['versions'], 'are not kept')}"
