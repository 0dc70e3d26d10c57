"""Where log lines go: standard error with -v, the file of --log-file, and the journal under systemd.

Owns: levels, formats and handlers of one run of the command line. Must not know: what is logged. A logger is named
after something that a user knows, not after its module: nbdpull.libvirt, nbdpull.nbd, nbdpull.store, nbdpull.guest, or
a verb, such as nbdpull.pull. Its lines start with that name. INFO is what -v shows (steps, libvirt calls, connections,
retries), DEBUG what -vv adds (programs, files, requests).
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional, TextIO

from ..core import errors
from ..core.errors import Report
from . import terminal

SAID = "nbdpull.said"  # already printed on standard error: for the log file only

_run, _said = logging.getLogger("nbdpull"), logging.getLogger(SAID)
_programs = logging.getLogger("nbdpull.program")
_run.addHandler(logging.NullHandler())  # else Python prints what is logged before `kept`
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}  # of syslog(3)
_LOCAL_TIME, _UTC = "%H:%M:%S", "%Y-%m-%dT%H:%M:%S"


@contextmanager
def kept(verbosity: int, path: Optional[str], warn: Callable[[str], None]) -> Iterator[None]:
    """Log inside the block.

    verbosity: how often -v was given; path: of the file that lines are appended to; warn: called once if the file can
    no longer be written. OutputError if the file cannot be opened. Only its owner can read it: it names domains, paths
    and hosts.
    """
    handlers = [*([_on_standard_error()] if verbosity else []), *([_in_file(path, warn)] if path else [])]
    _run.propagate = False
    _run.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO if handlers else logging.CRITICAL)
    for handler in handlers:
        _run.addHandler(handler)
    if verbosity > 1:
        sys.addaudithook(_hear_of_programs)  # Python cannot remove it again
    try:
        yield
    finally:
        for handler in handlers:
            _run.removeHandler(handler)
            handler.close()
        _run.setLevel(logging.CRITICAL)


def said(level: int, line: str) -> None:
    """Write what was printed on standard error to the log file."""
    _said.log(level, "%s", line)


def began(verb: str, version: str) -> None:
    """Log the begin of a verb, so that a file with the lines of many runs shows which is which."""
    _run.info("%s begins, version %s", verb, version)


def ended(exit_code: int, seconds: float) -> None:
    """Log the end of a verb; nothing outside `kept`."""
    _run.info("ended with exit code %d after %.1f s", exit_code, seconds)


def priority(level: int) -> str:
    """Return the prefix of a line for systemd's journal, see sd-daemon(3); empty if standard error goes elsewhere."""
    return f"<{_PRIORITIES[level]}>" if _is_journal(sys.stderr) else ""


def with_steps(report: Report, verb: str) -> Report:
    """Return the same receiver of a verb's events, but log each event first, without its lists, which are for
    programs."""
    steps = logging.getLogger(f"nbdpull.{verb}")

    def logged(event: str, **values: Any) -> None:
        if event != "progress" and steps.isEnabledFor(logging.INFO):
            shown = {name: value for name, value in values.items() if value is not None and not isinstance(value, list)}
            steps.info("%s", " ".join([event, *(f"{name}={value}" for name, value in shown.items())]))
        report(event=event, **values)

    return logged


def _hear_of_programs(event: str, about: tuple[Any, ...]) -> None:
    """Log every program that is started, anywhere in the code."""
    if event == "subprocess.Popen":
        _programs.debug("%s", shlex.join(map(os.fsdecode, about[1])))


class _Line(logging.Formatter):
    """Formats a record as one line, without a traceback and without anything that a terminal would interpret."""

    def __init__(self, head: str, time_format: str, utc: bool = False):
        super().__init__(head, time_format)
        self.converter = time.gmtime if utc else time.localtime

    def format(self, record: logging.LogRecord) -> str:
        record.topic = record.name.rpartition(".")[2]
        return terminal.plain(super().format(record))


def _on_standard_error() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.name != SAID)
    if _is_journal(sys.stderr):  # which adds the time itself
        handler.setFormatter(_Journal("%(topic)s: %(message)s", _LOCAL_TIME))
    else:
        handler.setFormatter(_Line("%(asctime)s.%(msecs)03d %(topic)s: %(message)s", _LOCAL_TIME))
    return handler


class _Journal(_Line):
    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES[record.levelno]}>{super().format(record)}"


def _in_file(path: str, warn: Callable[[str], None]) -> logging.Handler:
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    try:
        stream = open(path, "a", encoding="utf-8", errors="backslashreplace", opener=opener)  # noqa: SIM115
    except OSError as error:
        raise errors.OutputError(f"cannot write to {path}: {error.strerror}") from error
    handler = _FileHandler(stream, path, warn)
    head = f"%(asctime)s.%(msecs)03dZ {os.getpid()} %(levelname)s %(topic)s: %(message)s"
    handler.setFormatter(_Line(head, _UTC, utc=True))
    return handler


class _FileHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A log file. If it cannot be written, this is a warning, and stops no backup."""

    def __init__(self, stream: TextIO, path: str, warn: Callable[[str], None]):
        super().__init__(stream)
        self._path: Optional[str] = path
        self._warn = warn

    def handleError(self, record: logging.LogRecord) -> None:
        path, self._path = self._path, None
        if path:
            error = sys.exc_info()[1]
            why = error.strerror if isinstance(error, OSError) else error
            self._warn(f"the log {path} is no longer written: {why}")

    def close(self) -> None:
        try:
            self.stream.close()
        except OSError:
            self.handleError(logging.makeLogRecord({}))
        super().close()


def _is_journal(stream: TextIO) -> bool:
    """Return whether systemd connected this stream to its journal: the variable has the socket's device and inode."""
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{about.st_dev}:{about.st_ino}"
