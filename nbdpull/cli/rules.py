"""What prune, policy and copy have in common: the options that say what to keep.

Must not know: what a rule keeps.
"""

from __future__ import annotations

from . import types, usage

_RULES = {
    "last": "the last N points of each domain",
    "hourly": "the newest point of each of the last N hours that have one",
    "daily": "the same for days",
    "weekly": "for weeks, which start on Monday",
    "monthly": "for months",
    "yearly": "for years",
}


def add(parser: usage.Parser, of: type, what: str = "what is kept") -> None:
    rules = parser.add_argument_group(f"{what}; with several rules, what any of them keeps")
    for rule, text in _RULES.items():
        usage.add(rules, of, f"--keep-{rule}", metavar="N", type=types.in_range(0, 1_000_000), help=text)
    usage.add(rules, of, "--keep-within", metavar="T", type=types.time_with_unit,
              help="all points that are at most this much older than the newest: 14d")  # fmt: skip
    usage.add(rules, of, "--time-zone", metavar="ZONE", help="for hours and days, such as Europe/Berlin (default: UTC)")
