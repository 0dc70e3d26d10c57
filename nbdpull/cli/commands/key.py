"""key: who can open a sealed store."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...core.choices import KeyAction
from ...core.errors import Check, Report
from ...operations.options.stores import KeyOptions as Options
from .. import terminal, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.key import Result, Tried

SUMMARY = "list, add, remove, replace, test or export the keys of a sealed store"
EXAMPLE = "key add dir/ --recipient age1… --identity my.key"


def add(parser: usage.Parser) -> None:
    usage.add(parser, Options, "action", metavar="ACTION", choices=KeyAction.WORDS, help=", ".join(KeyAction.WORDS))
    usage.add_store(parser, Options)
    usage.add(parser, Options, "key", metavar="KEY", nargs="?",
              help="for remove: name, label or recipient of the key")  # fmt: skip
    usage.add_recipients(parser, Options)
    usage.add(parser, Options, "--label", metavar="TEXT", help="label of a new key, shown in the list")
    usage.add(parser, Options, "--force", action="store_true",
              help="remove and rotate: even if no available identity opens the store afterwards")  # fmt: skip
    usage.add_identities(parser, Options)
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import key

    options = usage.options(Options, args)
    found = key.key(options, report, check)
    failed = [each.problem for each in found.tried if each.problem]
    return Outcome(
        _members(found),
        _lines(found, options),
        max((error.exit_code for error in failed), default=0),
        warnings=found.warnings,
        complaints=[str(error) for error in failed],
        text=found.exported,
    )


def _members(found: Result) -> dict[str, Any]:
    return {
        "master": found.master,
        "keys": [{"name": each.name, "kind": each.kind, "recipient": each.recipient, "label": each.label,
                  "when": each.when, "who": each.who} for each in found.keys],
        "changed": found.changed,
        "tried": [{"identity": each.identity, "key": each.key, "problem": str(each.problem) if each.problem else None,
                   "only": None if each.only is None else [*each.only]} for each in found.tried],
        "exported": found.exported,
    }  # fmt: skip


def _lines(found: Result, options: Options) -> Iterator[str]:
    if found.tried:
        for each in found.tried:
            if not each.problem:
                key = f": key {each.key}" if each.key else ""
                yield f"{each.identity} opens {options.store}{key}{_only(each, found.master)}"
        return
    yield f"master key {found.master}, which these keys open:"
    yield from terminal.table(["KEY", "WHOSE", "SINCE"], _rows(found))


def _only(tried: Tried, master: str) -> str:
    if tried.only is None:
        return ""
    if not tried.only:
        return f"; for any master key: the line # nbdpull: only for master key {master} would restrict it to this one"
    return f"; only for master key {', '.join(tried.only)}"


def _rows(found: Result) -> Iterator[tuple[str, ...]]:
    for each in found.keys:
        yield each.name, each.of, each.when[:16].replace("T", " ") or "?"
