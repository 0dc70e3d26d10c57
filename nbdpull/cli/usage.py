"""The words of the command line: how a verb's options are added, parsed and shown, and the errors for wrong ones.

A wrong command line is a UsageError of one line, which says where to look. Defaults come from the Options of the
operation: the parsed arguments contain only what was given. Must not know: what a verb does.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NoReturn, Optional, Protocol, TypeVar, cast

from ..core import errors
from ..core.choices import CACHE_DIR, CACHE_DIR_SIZE, S3_ENDPOINT
from ..core.errors import Check, Report
from . import types
from .commands import VERBS
from .output import Outcome, flush, show_text

EXIT_CODES = """\
exit codes:
  0    done
  1    internal error: a bug in nbdpull, please report it
  2    wrong usage
  3    domain: no such domain or disk, not running, nothing to back up
  4    checkpoint: not found, exists already, or bitmap unusable
  5    busy: another job or another nbdpull holds it, try again later
  6    hypervisor: libvirt, QEMU or the NBD connection failed
  7    permission denied by libvirt, or a token refused
  8    missing software: the message names the package
  9    output could not be written
  10   store: not a store, no such point, another domain, or a newer format
  11   damage found in the store
  12   a limit (--max-duration, --scratch-limit, --ttl) ended the run
  13   an image is not equal to the point, a store is behind another, or a point failed its drill
  14   the command of nbdpull run failed, or could not be run
  15   nbdpull status: a backup is missing, too old, damaged or unreadable
  16   the store is sealed, and no available identity opens it
  128+N  ended by signal N, such as 130 for Ctrl-C
"""

EXAMPLES = """\
examples:
  nbdpull vm1 -o dir/                  back up vm1 to dir/: incremental if possible, else full
  nbdpull vm1 --since chk3 -o since-chk3/
                                       what changed since checkpoint chk3
  nbdpull list dir/                    the points in dir/
  nbdpull restore dir/ -o out/         the newest point, as images and a domain.xml that names them
  nbdpull serve dir/                   the same over NBD, read-only, without a restore
  nbdpull drill dir/                   does the newest point boot?
  nbdpull verify dir/                  does everything match what was stored?
  nbdpull status dir/ --max-age 26h    does each domain have a sound point of the last day?

The first word is a verb or a domain: "nbdpull vm1" is "nbdpull pull vm1".
"""

_DASHED = re.compile("-[^-].")  # or an option with its value, -oDIR, which is rare
OptionsClass = TypeVar("OptionsClass")


class Command(Protocol):
    """A module of commands/."""

    SUMMARY: str
    EXAMPLE: str

    def add(self, parser: Parser) -> None: ...

    def run(self, args: Namespace, report: Report, check: Check) -> Outcome: ...


def command(verb: str) -> Command:
    return cast(Command, importlib.import_module(f".commands.{verb}", __package__))


def near(word: str, known: Iterable[str]) -> Optional[str]:
    """Return the known word that was probably meant, if one is similar enough."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)), None)


class Parser(argparse.ArgumentParser):
    """Parser of one verb. The parsed arguments contain only what was given.

    prints_events: whether the verb prints JSON lines with --json, instead of one document.
    """

    def __init__(self, verb: str) -> None:
        about = command(verb)
        super().__init__(
            prog=f"nbdpull {verb}",
            description=f"{about.SUMMARY[0].upper()}{about.SUMMARY[1:]}.",
            epilog=f"example:\n  nbdpull {about.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self._verb, self._words = verb, cast(Sequence[str], ())
        self._takes_command = self._takes_cache = self.prints_events = False
        about.add(self)
        _add_server(self, self._takes_cache)
        _add_logging(self)

    def parsed(self, words: Sequence[str]) -> Namespace:
        """Return the arguments; UsageError, even if there is only one word too many."""
        words, command = self._parted(words) if self._takes_command else (words, [])
        self._words = words
        self._require_known_options()
        args, more = self.parse_known_args(words)
        if more:
            self.error(f"unexpected argument {more[0]!r}")
        if self._takes_command:
            args.command = command
        return args

    def takes_command(self, line: str) -> None:
        """Treat what follows -- as a command with words of its own. line: the usage line."""
        self._takes_command, self.usage = True, line

    def takes_cache(self) -> None:
        """What it reads of an object store may come from this host."""
        self._takes_cache = True

    def _parted(self, words: Sequence[str]) -> tuple[Sequence[str], list[str]]:
        """Split words into those before the command, and the command.

        A domain whose name starts with a dash has a -- of its own before it.
        """
        at = words.index("--") if "--" in words else len(words)
        if {"-h", "--help"} & set(words[:at]):
            return words, []
        if words[at + 2 : at + 3] == ["--"] and words[at + 1].startswith("-"):
            at += 2
        command = list(words[at + 1 :])
        if not command:
            self.error("a command is missing: write it at the end, after --")
        return words[:at], command

    def _require_known_options(self) -> None:
        """Report unknown options first: a mistyped one may have a value, and then another error would hide it."""
        for word in self._words:
            name = word.partition("=")[0]
            if word == "--":
                return
            if name.startswith("--") and name not in self._option_string_actions:
                if name in _CACHE:
                    self.error(f"{name} is for list, show and serve; {self._verb} reads the object store itself")
                meant = near(name, self._option_string_actions)
                self.error(f"unknown option {name}" + (f" (did you mean {meant}?)" if meant else ""))

    def print_help(self, file: Any = None) -> None:
        show_text(self.format_help())
        flush()

    def error(self, message: str) -> NoReturn:
        if any(map(_DASHED.match, self._words)):
            message += "; put a name that starts with a dash after --, a value after =: --name=-vm"
        raise errors.UsageError(f"{message}; see nbdpull help {self._verb}")


def add(group: argparse._ActionsContainer, of: type, *names: str, **how: Any) -> None:
    """Add an option or argument that becomes a field of the Options class `of`; its help shows the default there, if it
    can be left out."""
    dest = how.get("dest") or names[-1].lstrip("-").replace("-", "_")
    [field] = [each for each in fields(of) if each.name == dest]
    default = field.default
    is_optional = names[0].startswith("-") or how.get("nargs") == "?"
    if is_optional and isinstance(default, (str, int, float)) and not isinstance(default, bool) and default != "":
        text = types.SHOWN.get(how.get("type", str), str)(default).replace("%", "%%")
        how["help"] = f"{how['help']} (default: {text})"
    group.add_argument(*names, **how)


def options(of: type[OptionsClass], args: Namespace, **others: Any) -> OptionsClass:
    """Return the Options of a verb: what was given, and defaults."""
    given = {field.name: getattr(args, field.name) for field in fields(of) if hasattr(args, field.name)}  # type: ignore[arg-type]
    return of(**{**given, **others})


def shown() -> str:
    """Return the text of nbdpull --help."""
    verbs = "".join(f"    {verb:10}{command(verb).SUMMARY}\n" for verb in VERBS)
    return f"{_USAGE}\nverbs:\n{verbs}\n{EXAMPLES}\n{EXIT_CODES}"


_USAGE = """\
usage: nbdpull [VERB] [OPTION]...
       nbdpull help [VERB]
       nbdpull --version

Pull-mode incremental backups of libvirt/QEMU virtual machines.
"""


# Options that several verbs have


def add_store(parser: Parser, of: type) -> None:
    add(parser, of, "store", metavar="DIR", help="the store: a directory, or s3://BUCKET/PREFIX")


def add_group(parser: Parser, of: type) -> None:
    add(parser, of, "--group", metavar="G", help="let this group read the store (default: its owner only)")


def add_chosen_point(parser: Parser, of: type) -> None:
    """Add a store, and one point of it."""
    add_store(parser, of)
    add_domain_of_store(parser, of)
    add_point(parser, of)


POINT = "id or its beginning, date, or latest: see nbdpull list"


def add_point(parser: Parser, of: type, what: str = POINT) -> None:
    add(parser, of, "--point", metavar="ID", help=what)


def add_named_point(parser: Parser, of: type) -> None:
    """Add a store, and a point of it that has to be named."""
    add_store(parser, of)
    add(parser, of, "point", metavar="POINT", help=POINT)
    add_domain_of_store(parser, of)


def add_domain_of_store(parser: Parser, of: type) -> None:
    add(parser, of, "--domain", metavar="D", help="name or UUID of the domain, if DIR holds more than one")


def add_domains(parser: Parser, of: type) -> None:
    add(parser, of, "--domain", metavar="D", help="only this domain, or those that match a pattern: 'web*'")


def add_connect(parser: Parser, of: type, what: str = "libvirt to connect to") -> None:
    add(parser, of, "-c", "--connect", metavar="URI", dest="uri", help=what)


def add_disks(parser: Parser, of: type) -> None:
    add(parser, of, "--disk", metavar="D", dest="disks", action="append", help="only this disk (may be repeated)")


def add_choice_of_disks(parser: Parser, of: type) -> None:
    add_disks(parser, of)
    add(parser, of, "--exclude", metavar="D", action="append", help="not this disk (may be repeated)")


def add_scratch(parser: Parser, of: type) -> None:
    add(parser, of, "--scratch-dir", metavar="DIR", type=os.path.abspath,
        help="scratch space, for what the guest overwrites during the pull")  # fmt: skip


def add_socket(parser: Parser, of: type) -> None:
    add(parser, of, "--socket", metavar="PATH", help="where QEMU creates its NBD socket")


def add_route(parser: Parser, of: type) -> None:
    """Add how to reach QEMU's NBD server."""
    add_socket(parser, of)
    add(parser, of, "--nbd", metavar="tcp:HOST:PORT", help="let QEMU serve over TCP instead (use --tls)")
    add(parser, of, "--tls", metavar="DIR", help="require TLS, using ca-cert.pem and client-*.pem in DIR")


def add_threads(parser: Parser, of: type, default: str = "two more than cores") -> None:
    add(
        parser,
        of,
        "--threads",
        metavar="N",
        type=types.in_range(1, 64),
        help=f"work on this many blocks at once (default: {default})",
    )


def add_readers(parser: Parser, of: type) -> None:
    """Add how many threads read a store."""
    add_threads(parser, of, "one more than cores; for a bucket at least 8")


def add_stall_timeout(parser: Parser, of: type) -> None:
    add(parser, of, "--stall-timeout", metavar="T", type=types.duration,
        help="give up on a server that does not answer for this long")  # fmt: skip


def add_recipients(parser: Parser, of: type) -> None:
    """Add who can open a sealed store."""
    add(parser, of, "--recipient", metavar="R", dest="recipients", action="append",
        help="a public key that opens it: age1…, 'ssh-ed25519 …' or 'ssh-rsa …' (may be repeated)")  # fmt: skip
    add(parser, of, "--passphrase-file", metavar="FILE", help="a passphrase that opens it: the only line of FILE")


def add_identities(parser: Parser, of: type) -> None:
    add(parser, of, "--identity", metavar="FILE", dest="identities", action="append",
        help="what opens a sealed store: a secret key of age or ssh, or a passphrase (may be repeated; "
        "default: NBDPULL_IDENTITY_FILE)")  # fmt: skip


def add_as_of(parser: Parser, of: type) -> None:
    add(parser, of, "--as-of", metavar="TIME",
        help="in a bucket that keeps old versions: read the store as it was at this time")  # fmt: skip


def add_dry_run(parser: Parser, of: type) -> None:
    add(parser, of, "--dry-run", action="store_true", help="show what is there, remove nothing")


def add_no_record(parser: Parser, of: type) -> None:
    add(parser, of, "--no-record", dest="keep", action="store_false", help="do not keep the result in the store")


def _add_server(parser: Parser, takes_cache: bool) -> None:
    group = parser.add_argument_group("object stores")
    group.add_argument("--s3-endpoint", metavar="URL",
                       help="the server that s3://… means (default: NBDPULL_S3_ENDPOINT)")  # fmt: skip
    if takes_cache:
        directory, size = _CACHE
        group.add_argument(directory, metavar="DIR", type=os.path.abspath,
                           help="cache what is read there in DIR (default: NBDPULL_CACHE_DIR)")  # fmt: skip
        group.add_argument(size, metavar="N", type=types.size, help="largest size of the cache (default: 1G)")


_CACHE = "--cache-dir", "--cache-dir-size"
_OF_SERVERS = {"s3_endpoint": S3_ENDPOINT, "cache_dir": CACHE_DIR, "cache_dir_size": CACHE_DIR_SIZE}


@contextmanager
def chosen_server(args: Namespace) -> Iterator[None]:
    """Inside the block, use this server in this process and its children, such as nbdkit: each opens the store
    itself."""
    before = {variable: os.environ.get(variable) for variable in _OF_SERVERS.values()}
    given = {variable: getattr(args, name, None) for name, variable in _OF_SERVERS.items()}
    _set({variable: str(value) for variable, value in given.items() if value is not None})
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, Optional[str]]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        os.environ.update({name: value} if value is not None else {})


def _add_logging(parser: Parser) -> None:
    group = parser.add_argument_group("logging")
    group.add_argument("-v", "--verbose", action="count",
                       help="show each step, libvirt call, connection and retry on stderr; -vv: more")  # fmt: skip
    group.add_argument("--log-file", metavar="FILE", help="append these lines, and all messages, to FILE")


def add_json(group: argparse._ActionsContainer, what: str = "one JSON object") -> None:
    """Add --json for a verb that prints no events. what: the document that it prints then."""
    group.add_argument("--json", action="store_true", help=what)


def add_output(parser: Parser) -> None:
    """Add how the result is shown, for a verb that prints events."""
    parser.prints_events = True
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="JSON lines on stdout: events, then one result")
    group.add_argument("--quiet", action="store_true", help="print only errors and warnings")
