"""policy: write into the store what prune should keep."""

from __future__ import annotations

import re
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from ...core.errors import Check, Report
from ...operations.options.stores import PolicyOptions as Options
from .. import locks, rules, terminal, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.policy import Result

SUMMARY = "write into the store what prune should keep"
EXAMPLE = "policy dir/ --keep-daily 7 --keep-weekly 4 --keep-monthly 12"

_ALL = "all domains"
_JOINED = "\N{NO-BREAK SPACE}"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "--domain", metavar="D",
              help="a policy only for this domain, or for those that match a pattern: 'db*'; without rules, show which "
              "one applies to it")  # fmt: skip
    rules.add(parser, Options)
    locks.add(parser, Options)
    usage.add(parser, Options, "--remove", action="store_true", help="remove the policy, or that of --domain")
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import policy

    options = usage.options(Options, args)
    found = policy.policy(options, report, check)
    values = {"policies": [each.members for each in found.policies], "changed": found.changed,
              "immutable": found.immutable and asdict(found.immutable)}  # fmt: skip
    return Outcome(values, _lines(found, options), warnings=found.warnings)


def _lines(found: Result, options: Options) -> Iterator[str]:
    yield from locks.lines(found.immutable)
    if options.immutable_for is not None and not found.immutable:
        yield "what is made from now on is not immutable; existing locks remain"
    if not found.policies:
        yield f"no policy for {options.domain}" if options.domain and not options.remove else "no policy"
        return
    for each in found.policies:
        yield f"{each.pattern or _ALL}:"
        yield from _wrapped(str(each.policy))


def _wrapped(rules: str) -> Iterator[str]:
    """Split rules into lines of at most 80 characters, without separating an option from its value."""
    whole = re.sub(" (?!--)", _JOINED, rules)
    lines = textwrap.wrap(whole, terminal.COLUMNS, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return (line.replace(_JOINED, " ") for line in lines)
