"""Numbers of bytes as people write them (65536, 64K, 1M, 2GiB), and as they like to read them (12.5 MiB)."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def parse(text: str) -> int:
    """Return bytes; ValueError says what is wrong."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size; write bytes, or 64K, 1M, 2G")
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def shown(count: float) -> str:
    """Return bytes as a short text, such as 12.5 MiB."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
