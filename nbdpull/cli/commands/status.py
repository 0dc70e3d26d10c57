"""status: check whether every domain has a sound point that is recent enough."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from typing import Any, Optional

from ...core import errors
from ...core.errors import Check, Report
from ...operations.options.points import StatusOptions as Options
from .. import locks, terminal, types, usage
from ..output import Outcome

SUMMARY = "check that every domain has a sound point"
EXAMPLE = "status dir/ --max-age 26h"

_MOST = 3  # points named in one line
_HEADINGS = ("DOMAIN", "NEWEST SOUND", "AGE", "FROZEN", "VERIFIED", "DRILLED", "STATE")


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add_domains(parser, Options)
    usage.add(parser, Options, "--max-age", metavar="T", type=types.duration,
              help="how old the newest sound point of a domain may be: 26h, 8d")  # fmt: skip
    usage.add(parser, Options, "--expect", metavar="FILE",
              help="domains that must have a sound point, one name per line")  # fmt: skip
    usage.add_json(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import status

    expected = {"expect": _names(args.expect)} if hasattr(args, "expect") else {}
    options = usage.options(Options, args, **expected)
    found = status.status(options, report, check)
    values = {"time": found.time, "ok": not found.is_bad, "max_age": options.max_age, "domains": found.domains,
              "immutable": found.immutable and asdict(found.immutable)}  # fmt: skip
    code = errors.NotOk.exit_code if found.is_bad else 0
    lines = chain(_lines(values, found.short_ids), locks.lines(found.immutable))
    return Outcome(values, lines, code, warnings=found.warnings)


def _names(path: str) -> list[str]:
    """Return the names in a file, one a line; UsageError."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise errors.UsageError(f"--expect: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise errors.UsageError(f"--expect: {path} is not a text file: write one domain name per line") from None
    found = [line for line in dict.fromkeys(lines) if line and not line.startswith("#")]
    if not found:
        raise errors.UsageError(f"--expect: {path} has no names: write one domain name per line")
    return found


def _lines(values: dict[str, Any], ids: dict[str, str]) -> Iterator[str]:
    """Yield the lines. The first is a complete summary, as a monitor may show no more."""
    domains, now = values["domains"], datetime.fromisoformat(values["time"])
    bad = [each for each in domains if each["problems"]]
    yield _cut(_summary(len(domains), [each["domain"] for each in bad]), terminal.COLUMNS)
    if domains:
        yield from ["", *_table(domains, ids, now)]
    if bad:
        yield ""
    for each in bad:
        yield from (f"{each['domain']}: {_text(problem, each, values['max_age'])}" for problem in each["problems"])


def _summary(count: int, bad: list[str]) -> str:
    if not count:
        return "not ok: the store has no points"
    if not bad:
        return f"ok: {terminal.count(count, 'domain')}"
    return f"not ok: {len(bad)} of {terminal.count(count, 'domain')}: {', '.join(map(terminal.plain, bad))}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _table(domains: list[dict[str, Any]], ids: dict[str, str], now: datetime) -> list[str]:
    """Return the table. Names are cut if lines would be too long: the problems below have the whole name."""
    rows = [_row(each, ids, now) for each in domains]
    others = terminal.table(_HEADINGS[1:], rows)
    width = max(terminal.COLUMNS - 2 - max(map(len, others)), len("DOMAIN"))
    names = [_cut(terminal.plain(each["domain"]), width) for each in domains]
    return terminal.table(_HEADINGS, [(name, *row) for name, row in zip(names, rows)])


def _row(domain: dict[str, Any], ids: dict[str, str], now: datetime) -> tuple[str, ...]:
    newest = domain["newest"]
    if newest is None:
        return ("-", "-", "-", *_proofs(domain, now), _state(domain))
    frozen = "yes" if newest["consistency"] == "frozen" else "no"
    return (ids[newest["id"]], terminal.age(newest["age"]), frozen, *_proofs(domain, now), _state(domain))


def _proofs(domain: dict[str, Any], now: datetime) -> tuple[str, str]:
    drilled = "FAILED" if "drill-failed" in domain["problems"] else _since(domain["drilled"], now)
    return _since(domain["verified"], now), drilled


def _since(proved: Optional[dict[str, Any]], now: datetime) -> str:
    return terminal.age((now - datetime.fromisoformat(proved["when"])).total_seconds()) if proved else "-"


def _state(domain: dict[str, Any]) -> str:
    if domain["problems"]:
        return str(domain["problems"][0]).replace("-", " ").upper()
    return "unexpected" if domain["expected"] is False else "ok"


def _some(texts: list[str], between: str = ", ") -> str:
    """Join the last texts, which are about the newest points, if there are many."""
    more = f" and {len(texts) - _MOST} more" if len(texts) > _MOST else ""
    return between.join(texts[-_MOST:]) + more


def _text(problem: str, domain: dict[str, Any], max_age: Optional[float]) -> str:
    newest = domain["newest"]
    if problem == "no-point":
        return "it has no point here"
    if problem == "none-sound":
        return "it has no sound point from which whole images can be made"
    if problem == "unreadable":
        return _some(domain["unreadable"], "; ")
    if problem == "damaged":
        return f"damaged, or built on damage: {_some(domain['damaged'])} (nbdpull verify shows the places)"
    if problem == "drill-failed":
        return f"point {domain['drilled']['point']} failed the last drill"
    when = f"its newest sound point, {newest['id']}, is from {newest['as_of'] or newest['created']}"
    if problem == "future":
        return f"{when}, which is in the future: a clock was wrong"
    return f"{when}, which is more than {types.duration_text(max_age or 0)} ago"
