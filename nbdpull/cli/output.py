"""What is printed: lines for a person, JSON documents, and JSON lines. Only this file and __main__ print.

Owns: the members that all JSON lines have, and how to handle a full or closed output. Must not know: verbs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Optional

from ..core import errors
from ..core.os_error import unprintable
from . import logs, terminal

SCHEMA = 2  # of the JSON lines; increased when a member is removed, or changes its meaning


@dataclass(frozen=True)
class Outcome:
    """The output of a verb.

    values: members of its result, or the JSON document of a verb that prints no events; lines: for a person, generated
    while they are printed; text: printed unchanged, to the byte, unless a terminal reads it; warnings, complaints: on
    standard error, always; domain: that the result is about.
    """

    values: Any = None
    lines: Iterable[str] = ()
    exit_code: int = 0
    domain: Optional[str] = None
    warnings: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    text: Optional[str] = None


def silent(**event: Any) -> None:
    """A Report that ignores events."""


def say(*lines: str) -> None:
    """Print lines for a person, on standard output."""
    for line in lines:
        _print(terminal.plain(line) + "\n")


def complain(*lines: str, level: int = logging.ERROR) -> None:
    """Print lines on standard error, and in the log."""
    with suppress(OSError):
        for line in lines:
            logs.said(level, line)
            print(f"{logs.priority(level)}nbdpull: {terminal.plain(line)}", file=sys.stderr)


def warn(*warnings: str) -> None:
    complain(*(f"warning: {warning}" for warning in warnings), level=logging.WARNING)


def show_text(text: str) -> None:
    """Print a document, unchanged to the byte unless a terminal reads it."""
    if sys.stdout.isatty():
        say(*text.splitlines())
    else:
        _print(text)


def print_json(value: Any) -> None:
    _print(json.dumps(value, indent=1) + "\n")


def print_event(event: str, domain: Optional[str], **values: Any) -> None:
    """Print a JSON line."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    _print(json.dumps({"event": event, "time": when, "schema": SCHEMA, "domain": domain, **values}) + "\n", flush=True)


def print_result(outcome: Outcome) -> None:
    """Print the last JSON line of a verb that completed."""
    code = outcome.exit_code
    values = {**(outcome.values or {}), "warnings": outcome.warnings}
    print_event("result", outcome.domain, ok=code == 0, exit_code=code, **values)


def print_failure(error: errors.NbdpullError, message: str, domain: Optional[str]) -> None:
    """Print the last JSON line of a verb that an error ended."""
    with suppress(OSError, errors.OutputError):  # its reader may be gone
        print_event("result", domain, ok=False, exit_code=error.exit_code, code=error.code, message=message,
                    left_behind=list(error.left_behind))  # fmt: skip


class Events:
    """Prints events as JSON lines: progress as often as a program can use it, all other events always."""

    INTERVAL = 0.1  # seconds

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, event: str, domain: Optional[str] = None, **values: Any) -> None:
        if event == "progress":
            if values.get("position") != values.get("size") and time.monotonic() < self._next:
                return
            self._next = time.monotonic() + self.INTERVAL
        print_event(event, domain, **values)


def flush() -> None:
    with _guarded():
        sys.stdout.flush()


def _print(text: str, flush: bool = False) -> None:
    with _guarded():
        print(text, end="", flush=flush)  # in one piece even if unbuffered: other processes may write there, too


@contextmanager
def _guarded() -> Iterator[None]:
    """Turn errors of standard output, such as a full disk, into an OutputError; raise BrokenPipeError for a closed
    pipe."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest would fail at Python's exit
        if isinstance(error, BrokenPipeError):
            raise
        raise errors.OutputError(f"cannot write to standard output: {unprintable(error)}") from error
