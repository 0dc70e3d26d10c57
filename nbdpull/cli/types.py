"""The types of options: which values are valid, and how they are written."""

from __future__ import annotations

import argparse
import re
from typing import Callable, Optional, TypeVar, Union

from ..core import sizes

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)\Z")

Value = TypeVar("Value")
Other = TypeVar("Other")


def size(text: str) -> int:
    try:
        return sizes.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size_text(count: int) -> str:
    """Format a size as on the command line: 64K, 1M."""
    units = ["", "K", "M", "G", "T"]
    while count and count % 1024 == 0 and len(units) > 1:
        count, units = count // 1024, units[1:]
    return f"{count}{units[0]}"


def duration(text: str) -> float:
    return _seconds(text, ", or seconds")


def _seconds(text: str, more: str = "") -> float:
    """Return the seconds of a duration. more: further forms, for the message."""
    match = _DURATION.match(text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 90s, 5m, 2h, 30d{more}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def time_with_unit(text: str) -> float:
    """Return a duration that points are kept for: a number alone is refused, as it was probably meant in days."""
    if text.replace(".", "", 1).isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} has no unit; write {text}d for days, or 90s, 5m, 2h")
    return _seconds(text)


def duration_text(seconds: float) -> str:
    """Format a duration as on the command line: 60s, 5m, 2h, 30d."""
    if seconds > 86400 and seconds % 86400 == 0:
        return f"{seconds / 86400:.10g}d"
    if seconds > 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:.10g}h"
    return f"{seconds / 60:.10g}m" if seconds > 60 and seconds % 60 == 0 else f"{seconds:.10g}s"


def frame_size(text: str) -> int:
    value = size(text)
    if not 1 << 16 <= value <= 1 << 20 or value & (value - 1):
        raise argparse.ArgumentTypeError("must be 64K, 128K, 256K, 512K or 1M")
    return value


def chunk_size(text: str) -> int:
    value = size(text)
    if value < 1 << 20:
        raise argparse.ArgumentTypeError("must be at least 1M")
    return value


def in_range(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low} to {high}")
        return int(text)

    return parse


def pair(text: str) -> tuple[str, str]:
    """Parse DISK=…; both parts are required."""
    disk, equals, rest = text.partition("=")
    if not (disk and equals and rest):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form vda=…")
    return disk, rest


def maybe_pair(text: str) -> tuple[Optional[str], str]:
    """Parse DISK=IMAGE, or an image alone: a path or URI with a slash before its first "=" names no disk."""
    if "=" not in text or "/" in text.partition("=")[0]:
        return None, text
    try:
        return pair(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor an image alone") from None


def share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if not match or not 0 < float(match[1]) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage; write 5% or 0.1%")
    return float(match[1]) / 100


def share_text(value: float) -> str:
    """Format a share as on the command line: 50%."""
    return f"{value * 100:.10g}%"


def shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard; write 2/7 for the second of seven")
    return int(match[1]), int(match[2])


def _or(parse: Callable[[str], Value], word: str, value: Other, *alike: str) -> Callable[[str], Union[Value, Other]]:
    """Extend a type by a word that its message names, and by other spellings of that word."""

    def parse_or(text: str) -> Union[Value, Other]:
        if text in (word, *alike):
            return value
        try:
            return parse(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or {word}") from None

    return parse_or


zstd_level = _or(in_range(1, 19), "auto", None)  # None: the pull chooses it
time_with_unit_or_none = _or(time_with_unit, "0", 0.0)
share_or_none = _or(share, "0", 0.0, "0%")

SHOWN: dict[Callable[[str], object], Callable[..., str]] = {
    size: size_text,
    frame_size: size_text,
    chunk_size: size_text,
    duration: duration_text,
    share_or_none: share_text,
}
