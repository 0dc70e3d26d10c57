"""The command line: arguments in; lines, JSON and an exit code out.

Owns: which verb runs, and what is printed when it fails. Must not know: how a verb does its work, or its options
(commands/ does).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import Namespace
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Optional

from .. import __version__
from ..core import ending, errors
from ..core.errors import Check
from . import logs, output, signals, terminal, usage
from .commands import VERBS


@dataclass(frozen=True)
class Line:
    """A command line.

    prints_lines: whether it asks for JSON lines, events and a result; guessed: the first word, if it was taken for a
    domain because it is not a verb.
    """

    verb: str
    args: Namespace
    prints_lines: bool
    guessed: Optional[str] = None


def main(argv: Optional[list[str]] = None) -> int:
    """Run one command line; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    began = time.monotonic()
    with ExitStack() as logged:  # until an error has been printed
        code = _main(words, logged)
        logs.ended(code, time.monotonic() - began)
        return code


def _main(words: list[str], logged: ExitStack) -> int:
    line = None
    try:
        if _showed_help(words):
            return 0
        line = parsed(words)
        logged.enter_context(usage.chosen_server(line.args))
        logged.enter_context(
            logs.kept(getattr(line.args, "verbose", 0), getattr(line.args, "log_file", None), output.warn)
        )
        logs.began(line.verb, __version__)
        with signals.stopping() as check, ending.asked_by(check):
            code = _run(line, check)
        output.flush()
        return code
    except errors.NbdpullError as error:
        return _failed(error, words, line)
    except BrokenPipeError:  # the reader of our output is gone
        return 128 + signal.SIGPIPE
    except MemoryError as error:
        return _failed(_unexpected(error, errors.NO_MEMORY), words, line)
    except Exception as error:
        if os.environ.get("NBDPULL_DEBUG"):
            raise
        what = f"internal error: {type(error).__name__}: {error}; set NBDPULL_DEBUG=1 for the traceback, and report it"
        return _failed(_unexpected(error, what), words, line)


def _unexpected(error: Exception, what: str) -> errors.NbdpullError:
    """Return the NbdpullError that reports an error of another kind, with what it left behind."""
    found = errors.NbdpullError(what)
    found.left_behind = errors.left_behind(error)
    return found


def _showed_help(words: list[str]) -> bool:
    """Return whether the words ask for the help or the version instead of a verb; print it if so."""
    if words in (["-h"], ["--help"], ["help"]):
        output.show_text(usage.shown())
    elif words == ["--version"]:
        output.show_text(f"nbdpull {__version__}\n")
    else:
        return False
    output.flush()
    return True


def parsed(words: list[str]) -> Line:
    """Parse the words. UsageError if they are wrong; SystemExit once the help of a verb is printed."""
    if not words:
        raise errors.UsageError("a verb or a domain is missing; see nbdpull help")
    first, *rest = words
    if first == "help":
        verb, *more = rest
        if verb not in VERBS:
            raise errors.UsageError(f"no verb {verb!r}{_meant(verb)}; see nbdpull help")
        if more:
            raise errors.UsageError(f"unexpected argument {more[0]!r}; see nbdpull help")
        first, rest = verb, ["--help"]
    if first in VERBS:
        return _line(first, rest)
    guessed = None if first.startswith("-") else first  # options before the domain are those of pull
    try:
        return _line("pull", words, guessed)
    except errors.UsageError as error:
        if not _meant(guessed):
            raise
        raise errors.UsageError(f"no verb {guessed!r}{_meant(guessed)}; as a domain to pull: {error}") from error


def _line(verb: str, words: list[str], guessed: Optional[str] = None) -> Line:
    parser = usage.Parser(verb)
    args = parser.parsed(words)
    return Line(verb, args, parser.prints_events and getattr(args, "json", False), guessed)


def _meant(word: Optional[str]) -> str:
    verb = usage.near(word, VERBS) if word else None
    return f" (did you mean {verb!r}?)" if verb else ""


def _run(line: Line, check: Check) -> int:
    verb, args = usage.command(line.verb), line.args
    if line.prints_lines:
        outcome = verb.run(args, logs.with_steps(output.Events(), line.verb), check)
        output.print_result(outcome)
        output.complain(*outcome.complaints)
        return outcome.exit_code
    quiet = getattr(args, "quiet", False)
    # A progress bar would overwrite the lines of -v.
    silent = quiet or hasattr(args, "verbose")
    outcome = verb.run(args, logs.with_steps(output.silent, line.verb), check) if silent else _with_bars(line, check)
    output.warn(*outcome.warnings)
    output.complain(*outcome.complaints)
    if getattr(args, "json", False) and outcome.values is not None:
        output.print_json(outcome.values)
    elif outcome.text is not None:
        output.show_text(outcome.text)
    elif outcome.exit_code or not quiet:
        output.say(*outcome.lines)
    return outcome.exit_code


def _with_bars(line: Line, check: Check) -> output.Outcome:
    with terminal.Bars() as bars:
        return usage.command(line.verb).run(line.args, logs.with_steps(bars, line.verb), check)


def _failed(error: errors.NbdpullError, words: list[str], line: Optional[Line]) -> int:
    message = str(error)
    if line and isinstance(error, errors.NoSuchDomain) and _meant(line.guessed):
        message += f"; nor is {line.guessed!r} a verb{_meant(line.guessed)}"
    if _prints_lines(words, line):
        output.print_failure(error, message, _domain(line) if line else None)
    output.complain(message, *error.left_behind)
    return error.exit_code


def _prints_lines(words: list[str], line: Optional[Line]) -> bool:
    """Return whether JSON lines are requested, even by a command line that could not be parsed."""
    if line:
        return line.prints_lines
    before = words[: words.index("--")] if "--" in words else words
    return "--json" in before and usage.Parser(words[0] if words[0] in VERBS else "pull").prints_events


def _domain(line: Line) -> Optional[str]:
    """Return the domain that a command is about: the one it names, or the only one in its store; else None."""
    named: Optional[str] = getattr(line.args, "domain", None)
    if named is not None or not hasattr(line.args, "store"):
        return named
    from ..operations import store_choice

    with suppress(errors.NbdpullError), ending.asked_by(_impatient):  # the server of the store may be what failed
        return store_choice.only_domain(line.args.store)
    return None


def _impatient() -> None:
    raise errors.Interrupted(signal.SIGTERM, "nobody waits for it")
