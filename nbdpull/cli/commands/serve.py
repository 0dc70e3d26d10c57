"""serve: serve the disks of a point over NBD or HTTP, until stopped."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.restores import ServeOptions as Options
from .. import output, types, usage
from ..output import Outcome

SUMMARY = "serve the disks of a point over NBD or HTTP, without a restore"
EXAMPLE = "serve dir/"


def add(parser: usage.Parser) -> None:
    parser.takes_cache()
    usage.add_chosen_point(parser, Options)
    usage.add_as_of(parser, Options)
    usage.add_disks(parser, Options)
    where = parser.add_mutually_exclusive_group()
    usage.add(where, Options, "--socket", metavar="PATH",
              help="Unix socket to create (default: one in a new directory)")  # fmt: skip
    usage.add(where, Options, "--port", metavar="N", type=types.in_range(1, 65535),
              help="TCP port of 127.0.0.1 to listen on")  # fmt: skip
    usage.add(where, Options, "--http", metavar="WHERE", help="serve HTTP instead, at HOST:PORT or unix:PATH")
    usage.add(parser, Options, "--token-file", metavar="FILE",
              help="token that HTTP clients have to send: one line, which only you can read")  # fmt: skip
    usage.add(parser, Options, "--tls", metavar="DIR", help="use TLS, with server-cert.pem and server-key.pem in DIR")
    usage.add(parser, Options, "--client-ca", metavar="FILE", help="require client certificates of this CA")
    usage.add(parser, Options, "--writable", action="store_true",
              help="let clients write; discard it at the end")  # fmt: skip
    usage.add(parser, Options, "--cache", dest="cache_bytes", metavar="N", type=types.size,
              help="memory for decompressed frames of a disk")  # fmt: skip
    usage.add_identities(parser, Options)
    parser.prints_events = True
    parser.add_argument("--json", action="store_true", help="JSON lines on stdout")


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import serve

    found = serve.serve(usage.options(Options, args), report if getattr(args, "json", False) else _show, check)
    return Outcome({}, domain=found.domain)


def _show(event: str, **members: Any) -> None:
    """Tell a person about an event."""
    if event == "trouble":
        output.complain(members["message"])
        return
    exports = members["exports"]
    found = [f"{each['disk']}  {size(each['size'])}  {each['uri' if 'uri' in each else 'data']}" for each in exports]
    overlays = [each["overlay"] for each in exports if "overlay" in each]
    output.say(
        f"{members['domain']} at point {members['point']}:",
        *found,
        "",
        *([*overlays, ""] if overlays else []),
        "Press Ctrl-C to stop.",
    )
