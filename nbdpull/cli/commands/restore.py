"""restore: the disks of a point as images, devices or NBD exports."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Optional, TypeVar

from ...core import errors, freed_memory
from ...core.choices import IMAGE_KINDS
from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.restores import RestoreOptions as Options
from .. import terminal, types, usage
from ..output import Outcome

if TYPE_CHECKING:
    from ...operations.restore import Loss, Result

SUMMARY = "write the disks of a point as images"
EXAMPLE = "restore dir/ -o out/"
Disk = TypeVar("Disk")


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "-o", "--output", metavar="OUT",
              help="directory for the images and the domain's files; for one disk also a device, an NBD URI, or - "
              "(stdout)")  # fmt: skip
    usage.add(parser, Options, "--to", metavar="DISK=TARGET", type=types.pair, action="append",
              help="target of this disk: path of an image, block device, nbd:// or nbd+unix:// URI, - (may be "
              "repeated)")  # fmt: skip
    usage.add_domain_of_store(parser, Options)
    usage.add_point(parser, Options)
    usage.add_as_of(parser, Options)
    usage.add_disks(parser, Options)
    usage.add(parser, Options, "--format", dest="kind", choices=IMAGE_KINDS,
              help="default: that of the domain's disk")  # fmt: skip
    usage.add(parser, Options, "--image-options", metavar="O=V,…",
              help="options for new qcow2 images, as for qemu-img create -o")  # fmt: skip
    usage.add(parser, Options, "--encrypt-disk", dest="secrets", metavar="DISK=FILE", type=types.pair, action="append",
              help="encrypt this disk with LUKS, using the secret in FILE (may be repeated)")  # fmt: skip
    usage.add(parser, Options, "--force", action="store_true",
              help="overwrite what exists: images, devices, a definition")  # fmt: skip
    usage.add(parser, Options, "--no-verify", dest="verify", action="store_false",
              help="do not check the files of the disks before the first write")  # fmt: skip
    usage.add(parser, Options, "--no-space-check", dest="space_check", action="store_false",
              help="start even if too little space seems to be free")  # fmt: skip
    usage.add(parser, Options, "--salvage", action="store_true",
              help="restore what is not damaged, and list what is lost")  # fmt: skip
    place = parser.add_mutually_exclusive_group()
    usage.add(place, Options, "--delta", action="store_true", help="the targets exist: write only what differs")
    usage.add(place, Options, "--onto", metavar="[DISK=]IMAGE", type=types.maybe_pair, action="append",
              help="apply a partial point to an image that holds its base (may be repeated)")  # fmt: skip
    usage.add(parser, Options, "--define", action="store_true",
              help="define the domain in libvirt from the restored domain.xml")  # fmt: skip
    usage.add(parser, Options, "--name", metavar="N", help="name of the restored domain")
    usage.add(parser, Options, "--new-uuid", action="store_true",
              help="give the restored domain a new UUID: it is a copy")  # fmt: skip
    usage.add(parser, Options, "--trust-definition", action="store_true",
              help="with --define: keep everything of the host that the definition names")  # fmt: skip
    usage.add_connect(parser, Options, "libvirt to define it in")
    usage.add_readers(parser, Options)
    usage.add_identities(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import restore

    to, onto = getattr(args, "to", []), getattr(args, "onto", [])
    given = {"to": _by_disk([*to, *onto]), "onto": bool(onto), "secrets": _by_disk(getattr(args, "secrets", []))}
    options = usage.options(Options, args, **given)
    if getattr(args, "json", False) and "-" in [options.output, *options.to.values()]:
        raise errors.UsageError("--json and a disk cannot both go to stdout")
    freed_memory.keep()
    result = restore.restore(options, report, check)
    following = _next_command(options, result)
    values = {**vars(result), "point": result.point.id, "lost": [vars(loss) for loss in result.lost]}
    values["next_command"] = following
    del values["domain"], values["warnings"]
    lost, to_stdout = [_lost(loss) for loss in result.lost], "-" in result.files.values()
    return Outcome(
        values=values,
        lines=() if to_stdout else _lines(result, lost, following),
        exit_code=errors.Damaged.exit_code if lost else 0,
        domain=result.domain,
        warnings=result.warnings,
        complaints=lost if to_stdout else [],
    )


def _by_disk(pairs: Iterable[tuple[Disk, str]]) -> dict[Disk, str]:
    pairs = list(pairs)
    if len({disk for disk, _ in pairs}) != len(pairs):
        raise errors.UsageError("a disk has two targets, or two secrets")
    return dict(pairs)


def _next_command(options: Options, result: Result) -> Optional[str]:
    """Return the shell command that starts the restored domain, or opens its definition if disks are elsewhere than it
    says.

    None if the disk went to stdout.
    """
    from ...format import layout

    if "-" in result.files.values():
        return None
    uri = result.defined["uri"] if result.defined else options.uri
    virsh, path = ["virsh", *(["-c", uri] if uri else [])], result.beside.get(layout.DOMAIN_XML)
    named = f"--domain={result.domain}" if result.domain.startswith("-") else result.domain
    steps = [] if result.defined or not path else [[*virsh, "define", f"./{path}" if path.startswith("-") else path]]
    # The memory of a saved state does not fit the restored disks, or brings back the old ones. --define refuses one.
    start = ["start", named] if result.defined else ["start", named, "--force-boot"]
    steps.append([*virsh, *(["edit", named] if result.misplaced else start)])
    return " && ".join(map(shlex.join, steps))


def _lines(result: Result, lost: list[str], following: Optional[str]) -> Iterator[str]:
    yield f"point {result.point.id} restored in {result.seconds:.1f} s:"
    yield from _disks(result)
    yield from (f"{name}: {path}" for name, path in result.beside.items())
    if result.defined:
        yield "domain {name} (uuid {uuid}) is defined at {uri}".format(**result.defined)
    for disk in result.misplaced:
        yield f"disk {disk} is {result.formats[disk]} at {result.files[disk]}: change its definition to match"
    yield from lost
    if lost:
        yield "Some data is lost and reads as zero: check the images before you start a VM from them."
    yield f"next: {following}"


def _disks(result: Result) -> list[str]:
    """Return a table of what was written of each disk, how fast, and where."""
    rows = []
    for disk, written in result.written_bytes.items():
        rate = terminal.rate(written, result.seconds)
        rows.append((disk, size(result.sizes[disk]), size(written), rate, result.files[disk]))
    return terminal.table(("DISK", "SIZE", "WRITTEN", "RATE", "TARGET"), rows)


def _lost(loss: Loss) -> str:
    if loss.disk is None or loss.offset is None or loss.length is None:
        return f"LOST {loss.problem}"
    return f"LOST {loss.disk}: bytes {loss.offset} to {loss.offset + loss.length}: {loss.problem}"
