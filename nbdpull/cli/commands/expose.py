"""expose: a backup of a domain over HTTP, for a program that stores it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ...core.choices import Offline, OnLostBase, Quiesce
from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.exports import ExposeOptions as Options
from .. import types, usage
from ..output import Outcome, say

SUMMARY = "back up a domain over HTTP, for another program"
EXAMPLE = "expose vm1 --listen 127.0.0.1:8080 --token-file secret --since token --token-out token"


def add(parser: usage.Parser) -> None:
    usage.add(parser, Options, "domain", metavar="DOMAIN", help="name of the libvirt domain")
    usage.add(parser, Options, "--listen", metavar="WHERE", required=True, help="HOST:PORT, or unix:PATH")
    usage.add(parser, Options, "--token-file", metavar="FILE", required=True,
              help="token that clients have to send: one line, which only you can read")  # fmt: skip
    usage.add(parser, Options, "--since", metavar="FILE",
              help="what changed since the backup whose token is in FILE; everything if there is no FILE")  # fmt: skip
    usage.add(parser, Options, "--token-out", metavar="FILE", help="where to put the new token at the commit")
    usage.add(parser, Options, "--tls", metavar="DIR", help="use TLS, with server-cert.pem and server-key.pem in DIR")
    usage.add(parser, Options, "--client-ca", metavar="FILE", help="require client certificates of this CA")
    usage.add(parser, Options, "--ttl", metavar="T", type=types.duration,
              help="abandon the backup if no client finishes it in this time")  # fmt: skip
    usage.add_connect(parser, Options)
    usage.add_choice_of_disks(parser, Options)
    usage.add(parser, Options, "--on-lost-base", choices=OnLostBase.WORDS,
              help="if a disk's base is lost: read it in full, or fail")  # fmt: skip
    usage.add(parser, Options, "--offline", choices=Offline.WORDS, help="a domain that is off: as for pull")
    usage.add(parser, Options, "--quiesce", nargs="?", choices=Quiesce.WORDS, const=Quiesce.REQUIRE,
              help="freeze the guest's file systems while the backup starts: if possible (auto), or else fail "
              "(require, or --quiesce without a value), or never; write a value with '='")  # fmt: skip
    usage.add(parser, Options, "--freeze-timeout", metavar="S", type=types.in_range(5, 60),
              help="seconds that the freeze may last")  # fmt: skip
    usage.add_scratch(parser, Options)
    usage.add(parser, Options, "--scratch-limit", metavar="N", type=types.size,
              help="end a backup whose scratch space grows beyond this")  # fmt: skip
    usage.add_socket(parser, Options)
    usage.add(parser, Options, "--nbd", metavar="tcp:HOST:PORT",
              help="let QEMU serve NBD over TCP instead (use --nbd-tls)")  # fmt: skip
    usage.add(parser, Options, "--nbd-tls", metavar="DIR",
              help="require TLS for --nbd, using ca-cert.pem and client-*.pem in DIR")  # fmt: skip
    usage.add_stall_timeout(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import expose

    heard = report if getattr(args, "json", False) or getattr(args, "quiet", False) else _show
    found = expose.expose(usage.options(Options, args), heard, check)
    values = {
        "id": found.id,
        "as_of": found.as_of,
        "consistency": found.consistency,
        "consistency_reason": found.consistency_reason,
        "token": found.token,
        "disks": [vars(disk) for disk in found.disks],
        "dropped_checkpoints": list(found.dropped_checkpoints),
        "seconds": found.seconds,
    }
    lines = [f"{found.domain}: backup {found.id} is committed", f"token: {found.token}"]
    return Outcome(values, lines, domain=found.domain, warnings=list(found.warnings))


def _show(event: str, **members: Any) -> None:
    """Tell a person what is served."""
    exports = members["exports"]
    say(
        f"{members['domain']}: backup {members['id']}, as of {members['as_of']}:",
        *(
            f"{each['disk']}  {size(each['size'])}  {each['mode']} ({each['reason']})  {each['data']}"
            for each in exports
        ),
        f"finish: POST {members['url']}/finish, within {types.duration_text(members['ttl'])}",
    )
