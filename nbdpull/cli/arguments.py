"""The words of the command line: verbs, options, their bounds, examples and the table of exit codes.

Must not know: what a verb does.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence

from .. import __version__
from ..core import sizes

EXIT_CODES = """\
exit codes:
  0    done
  1    internal error: a fault of nbdpull, please report it
  2    wrong usage
  3    domain: no such domain or disk, not running, nothing to back up
  4    checkpoint: no such one, exists already, bitmap unusable
  5    busy: another job or another nbdpull holds it, try again later
  6    hypervisor: libvirt, QEMU or the NBD connection failed
  7    permission denied by libvirt
  8    missing software: the message names the package
  9    output could not be written
  10   store: none there, no such point, of another domain, of a newer format
  11   damage found in the store
  12   a limit that was given (--max-duration, --scratch-limit) ended the run
  13   an image is not equal to the point, or a point failed its drill
  128+N  ended by signal N, such as 130 for Ctrl-C
"""

EXAMPLES = """\
examples:
  nbdpull vm1 -o dir/                  continue the series in dir/: incremental where it can be, else full
  nbdpull vm1 --since chk3 -o since-chk3/
                                       what changed since checkpoint chk3
  nbdpull list dir/                    the points in dir/
  nbdpull restore dir/ -o out/         the newest point, as images and a domain.xml that names them
  nbdpull serve dir/                   the same, at once and read-only, over NBD
  nbdpull drill dir/                   does the newest point boot?
  nbdpull verify dir/                  is everything what was stored?

The first word is a verb or a domain: "nbdpull vm1" is "nbdpull pull vm1".
"""


def parse_size(text):
    try:
        return sizes.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)\Z")


def parse_duration(text):
    match = DURATION.match(text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write seconds, or 90s, 5m, 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _frame_size(text):
    value = parse_size(text)
    if not 1 << 16 <= value <= 1 << 20 or value & (value - 1):
        raise argparse.ArgumentTypeError("must be 64K, 128K, 256K, 512K or 1M")
    return value


def _chunk_size(text):
    value = parse_size(text)
    if value < 1 << 20:
        raise argparse.ArgumentTypeError("must be at least 1M")
    return value


def _pair(text):
    """DISK=…, where something is."""
    disk, equals, rest = text.partition("=")
    if not (disk and equals and rest):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with a disk and '=': write vda=…")
    return disk, rest


def _maybe_pair(text):
    """DISK=IMAGE, or an image alone: a path or URI with a slash before its first "=" names no disk."""
    return _pair(text) if "=" in text and "/" not in text.partition("=")[0] else (None, text)


def _in_range(low, high):
    def parse(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low} to {high}")
        return int(text)

    return parse


class _Parser(argparse.ArgumentParser):
    """Tells where to put a name that looks like an option."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        self._given = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message):
        if any(map(_DASHED.match, self._given)):
            message += "; a name that begins with a dash goes after --, a value so: --name=-vm"
        super().error(message)


_DASHED = re.compile("-[^-].")  # or an option with its value, -oDIR, which is rare


def parser():
    """Return the parser of the whole command line; `verb` of what it parses is one of VERBS."""
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    top = _Parser(
        prog="nbdpull",
        description="Pull-mode incremental backups of libvirt/QEMU virtual machines.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        **shape,
    )
    top.add_argument("--version", action="version", version=f"nbdpull {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    for name, (does, example, add) in _VERBS.items():
        added = verbs.add_parser(
            name,
            help=does,
            description=f"{does[0].upper()}{does[1:]}.",
            epilog=f"example:\n  nbdpull {example}",
            **shape,
        )
        add(added)
    return top


def _add_pull(added):
    added.add_argument("domain", metavar="DOMAIN")
    added.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="the store: a new folder or an earlier store"
    )
    base = added.add_mutually_exclusive_group()
    base.add_argument("--since", metavar="CHECKPOINT", help="pull what changed since this checkpoint")
    base.add_argument("--full", action="store_true", help="pull everything")
    made = added.add_mutually_exclusive_group()
    made.add_argument("--checkpoint", metavar="NAME", help="name of the checkpoint to make (default: a unique one)")
    made.add_argument("--no-checkpoint", action="store_true", help="make no checkpoint")
    added.add_argument(
        "--on-lost-base",
        choices=["full", "fail"],
        default="full",
        help="where a disk's base is lost: pull it in full, or fail (default: full)",
    )
    added.add_argument(
        "--resume",
        nargs="?",
        choices=["auto", "always", "never"],
        const="always",
        default="auto",
        help="go on with the job of a run that died, if it is the very one that this pull would begin: of the last "
        "hour (auto, the default), of any age (always, and --resume alone), or not; write it with '='",
    )
    added.add_argument(
        "--offline",
        choices=["auto", "start-paused", "read", "refuse"],
        default="auto",
        help="a domain that is off: start it with its CPUs paused, pull, and end it again; read its images without a "
        "start, which makes no checkpoint; the first where that can be, else the second (auto, the default); or refuse",
    )
    added.add_argument(
        "--quiesce",
        nargs="?",
        choices=["auto", "require", "never"],
        const="require",
        default="auto",
        help="freeze the guest's file systems while the backup begins: where it can be (auto, the default), "
        "without fail (require, and --quiesce alone), or not; write it with '='",
    )
    added.add_argument(
        "--freeze-timeout", metavar="S", type=_in_range(5, 60), default=30, help="seconds it may last (default: 30)"
    )
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt to connect to")
    added.add_argument("--disk", metavar="D", action="append", default=[], help="only this disk (may be repeated)")
    added.add_argument("--exclude", metavar="D", action="append", default=[], help="not this disk (may be repeated)")
    added.add_argument(
        "--scratch-dir",
        metavar="DIR",
        type=os.path.abspath,
        help="for what the guest overwrites meanwhile (default: /var/tmp)",
    )
    added.add_argument("--socket", metavar="PATH", help="where QEMU makes its NBD socket")
    _add_route_arguments(added)
    added.add_argument("--level", metavar="N", type=_in_range(1, 19), default=1, help="of zstd, 1 to 19 (default: 1)")
    _add_threads(added)
    added.add_argument("--max-rate", metavar="N", type=parse_size, help="bytes read a second, such as 50M")
    added.add_argument("--max-rate-file", metavar="FILE", help="holds the rate; looked at while running, 0 is no bound")
    added.add_argument(
        "--max-in-flight", metavar="N", type=_in_range(1, 1024), help="reads that QEMU has to do at once"
    )
    added.add_argument("--nice", metavar="N", type=_in_range(0, 19), default=0, help="of nbdpull's own processes")
    added.add_argument("--gentle", action="store_true", help="--max-in-flight 1 --nice 19: the guest comes first")
    added.add_argument("--no-dedupe", action="store_true", help="store data again that the parent holds already")
    added.add_argument("--frame-size", metavar="N", type=_frame_size, default=1 << 20, help="64K to 1M (default: 1M)")
    added.add_argument("--chunk-size", metavar="N", type=_chunk_size, default=256 << 20, help="default: 256M")
    _add_stall_timeout(added)
    added.add_argument("--max-duration", metavar="T", type=parse_duration, help="end a pull that takes longer")
    added.add_argument("--scratch-limit", metavar="N", type=parse_size, help="end a pull whose scratch grows beyond")
    added.add_argument("--no-space-check", action="store_true", help="begin however little space seems to be free")
    added.add_argument("--group", metavar="G", help="let this group read the store (default: its owner only)")
    _add_output_arguments(added)


def _add_stall_timeout(added):
    added.add_argument("--stall-timeout", metavar="T", type=parse_duration, default=60.0,
                       help="give up a server that is silent for so long (default: 60s)")  # fmt: skip


def _add_cleanup(added):
    added.add_argument("domain", metavar="DOMAIN")
    added.add_argument("-o", "--output", metavar="DIR", help="a store: what died there is removed, too")
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt to connect to")
    added.add_argument("--dry-run", action="store_true", help="tell what is there, remove nothing")
    _add_stall_timeout(added)
    _add_output_arguments(added)


def _add_release(added):
    added.add_argument("domain", metavar="DOMAIN")
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt to connect to")
    added.add_argument("--dry-run", action="store_true", help="show what is there, remove nothing")
    _add_stall_timeout(added)
    _add_output_arguments(added)


def _add_plan(added):
    added.add_argument("domain", metavar="DOMAIN")
    added.add_argument("-o", "--output", metavar="DIR", help="the store that the pull would go to; only read")
    base = added.add_mutually_exclusive_group()
    base.add_argument("--since", metavar="CHECKPOINT", help="what changed since this checkpoint")
    base.add_argument("--full", action="store_true", help="everything")
    _add_domain_arguments(added)
    _add_threads(added)
    added.add_argument("--json", action="store_true", help="one JSON object")


def _add_domain_arguments(added):
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt to connect to")
    added.add_argument("--disk", metavar="D", action="append", default=[], help="only this disk (may be repeated)")
    added.add_argument("--exclude", metavar="D", action="append", default=[], help="not this disk (may be repeated)")
    added.add_argument("--scratch-dir", metavar="DIR", type=os.path.abspath, help="as of pull (default: /var/tmp)")
    added.add_argument("--socket", metavar="PATH", help="where QEMU makes its NBD socket")
    _add_route_arguments(added)


def _add_route_arguments(added):
    added.add_argument("--nbd", metavar="tcp:HOST:PORT", help="let QEMU serve there instead (use --tls)")
    added.add_argument("--tls", metavar="DIR", help="TLS without fail, by ca-cert.pem and client-*.pem in DIR")


def _add_doctor(added):
    added.add_argument("domain", metavar="DOMAIN", nargs="?", help="look at this domain and its disks, too")
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt to connect to")
    added.add_argument("--scratch-dir", metavar="DIR", type=os.path.abspath, help="as of pull (default: /var/tmp)")
    added.add_argument("--json", action="store_true", help="one JSON array")


def _add_restore(added):
    added.add_argument("store", metavar="DIR")
    added.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="folder for the images and the domain's files; for one disk also a device, an NBD URI, or - (stdout)",
    )
    added.add_argument(
        "--to",
        metavar="DISK=TARGET",
        type=_pair,
        action="append",
        default=[],
        help="where this disk goes: path of an image, block device, nbd:// or nbd+unix:// URI, - (may be repeated)",
    )
    added.add_argument("--domain", metavar="D", help="its name or uuid, where DIR holds more than one")
    added.add_argument("--point", metavar="ID", default="latest", help="default: latest")
    added.add_argument("--disk", metavar="D", action="append", default=[], help="only this disk (may be repeated)")
    added.add_argument("--format", choices=["qcow2", "raw"], help="default: that of the domain's disk")
    added.add_argument("--image-options", metavar="O=V,…", default="", help="of a new qcow2, as qemu-img create -o")
    added.add_argument(
        "--encrypt-disk",
        metavar="DISK=FILE",
        type=_pair,
        action="append",
        default=[],
        help="encrypt this disk by LUKS, with the secret in FILE (may be repeated)",
    )
    added.add_argument("--force", action="store_true", help="overwrite what exists: images, devices, a definition")
    added.add_argument("--no-verify", action="store_true", help="do not prove the whole chain before the first write")
    added.add_argument("--no-space-check", action="store_true", help="begin, however little space seems to be free")
    added.add_argument("--salvage", action="store_true", help="restore what is not damaged, and list what is lost")
    place = added.add_mutually_exclusive_group()
    place.add_argument("--delta", action="store_true", help="the targets exist: write back only what differs")
    place.add_argument(
        "--onto",
        metavar="[DISK=]IMAGE",
        type=_maybe_pair,
        action="append",
        default=[],
        help="apply a point without a parent to an image that holds its base (may be repeated)",
    )
    added.add_argument("--define", action="store_true", help="define the domain in libvirt, by the restored domain.xml")
    added.add_argument("--name", metavar="N", help="name of the restored domain")
    added.add_argument("--new-uuid", action="store_true", help="give the restored domain a new uuid: it is a copy")
    added.add_argument("--trust-definition", action="store_true",
                       help="with --define: keep what the definition names of the host, whatever it is")  # fmt: skip
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt to define it in")
    _add_threads(added)
    _add_output_arguments(added)


def _share(text):
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if not match or not 0 < float(match[1]) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 5% or 0.1%")
    return float(match[1]) / 100


def _shard(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard; write 2/7 for the second of seven")
    return int(match[1]), int(match[2])


def _add_verify(added):
    added.add_argument("store", metavar="DIR")
    added.add_argument("--domain", metavar="D", help="only this domain")
    added.add_argument("--point", metavar="ID", help="only this point with all that it builds on, or latest")
    level = added.add_mutually_exclusive_group()
    level.add_argument("--level", choices=["files", "frames"], default="frames",
                       help="files: sizes and digests of files; frames: of every frame as well (default)")  # fmt: skip
    level.add_argument("--quick", dest="level", action="store_const", const="files", help="the same as --level files")
    level.add_argument("--against", metavar="IMAGE", help="is this image file or NBD URI equal to the point?")
    added.add_argument("--disk", metavar="D", help="with --against: the disk, where the point has more than one")
    added.add_argument("--format", choices=["raw", "qcow2"], help="with --against: of the image (default: looked up)")
    added.add_argument("--sample", metavar="P%", type=_share, help="look at this share, chosen anew in each run")
    added.add_argument("--shard", metavar="I/N", type=_shard, help="look at the I-th of N parts, in each run the same")
    added.add_argument("--max-duration", metavar="T", type=parse_duration, help="end after that: 90s, 15m, 2h")
    added.add_argument("--no-record", action="store_true", help="do not keep the result in the store")
    _add_threads(added)
    _add_output_arguments(added)


def _add_digest(added):
    added.add_argument("store", metavar="DIR")
    added.add_argument("--domain", metavar="D", help="its name or uuid, where DIR holds more than one")
    added.add_argument("--point", metavar="ID", default="latest", help='an id, "latest" (default) or "all"')
    added.add_argument("--disk", metavar="D", action="append", default=[], help="only this disk (may be repeated)")
    added.add_argument("--no-record", action="store_true", help="do not keep the digests in the store")
    _add_threads(added)
    _add_output_arguments(added)


def _add_serve(added):
    _add_wanted_point(added)
    added.add_argument("--disk", metavar="D", action="append", default=[], help="only this disk (may be repeated)")
    where = added.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", help="unix socket to make (default: one in a new folder)")
    where.add_argument("--port", metavar="N", type=_in_range(1, 65535), help="TCP port of 127.0.0.1 to listen on")
    added.add_argument("--writable", action="store_true", help="let clients write, to a layer that is thrown away")
    added.add_argument("--cache", metavar="N", type=parse_size, default=64 << 20,
                       help="memory for decompressed frames of a disk (default: 64M)")  # fmt: skip
    added.add_argument("--json", action="store_true", help="JSON lines on stdout")


def _add_drill(added):
    _add_wanted_point(added)
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt of this machine to boot it with")
    added.add_argument("--expect", metavar="REGEX",
                       help="ready when the serial console shows this (default: when the agent answers)")  # fmt: skip
    added.add_argument("--timeout", metavar="T", type=parse_duration, default=300.0,
                       help="how long to wait for that (default: 5m)")  # fmt: skip
    added.add_argument("--work-dir", metavar="DIR", help="for what the guest writes meanwhile (default: /var/tmp)")
    added.add_argument("--no-record", action="store_true", help="do not keep the result in the store")
    _add_output_arguments(added)


def _add_wanted_point(added):
    added.add_argument("store", metavar="DIR")
    added.add_argument("--domain", metavar="D", help="its name or uuid, where DIR holds more than one")
    added.add_argument("--point", metavar="ID", default="latest", help="default: latest")


def _add_point_arguments(added):
    added.add_argument("store", metavar="DIR")
    added.add_argument("point", metavar="POINT", help='an id of "list", or "latest"')
    added.add_argument("--domain", metavar="D", help="its name or uuid, where DIR holds more than one")


def _add_list(added):
    added.add_argument("store", metavar="DIR")
    added.add_argument("--json", action="store_true", help="one JSON array")


def _add_show(added):
    _add_point_arguments(added)
    shown = added.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="one JSON object")
    shown.add_argument("--xml", action="store_true", help="the domain's definition, as it was stored")


def _add_index(added):
    _add_point_arguments(added)
    added.add_argument("disk", metavar="DISK")
    added.add_argument("--json", action="store_true", help="the default, and the only form")
    added.add_argument("--rebuild", action="store_true", help="make a lost index again, from the chunk files")


def _add_threads(added):
    added.add_argument("--threads", metavar="N", type=_in_range(1, 64), help="default: two more than cores")


def _add_output_arguments(added):
    shown = added.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="JSON lines on stdout: events, and last one result")
    shown.add_argument("--quiet", action="store_true", help="print nothing but errors and warnings")


_VERBS = {
    "pull": ("back up a domain", "vm1 --since chk3 -o since-chk3/", _add_pull),
    "plan": ("tell what a pull would read, and leave nothing behind", "plan vm1 -o dir/", _add_plan),
    "doctor": ("look whether all is fit for pulls, and tell what to do", "doctor vm1", _add_doctor),
    "cleanup": ("remove what a pull that died left in a domain and a store", "cleanup vm1 -o dir/", _add_cleanup),
    "release": ("remove nbdpull's checkpoints and bitmaps from a domain", "release vm1", _add_release),
    "restore": ("write the disks of a point as images", "restore dir/ -o out/", _add_restore),
    "verify": ("look for damage in a store", "verify dir/", _add_verify),
    "digest": ("tell one value for the content of each disk of a point", "digest dir/ --point all", _add_digest),
    "serve": ("give the disks of a point to NBD clients, without a restore", "serve dir/", _add_serve),
    "drill": ("boot a point, see that it comes up, and throw it away", "drill dir/", _add_drill),
    "list": ("list the points of a store", "list dir/ --json", _add_list),
    "show": ("show one point", "show dir/ latest", _add_show),
    "index": ("list the records of a disk of a point, as JSON lines", "index dir/ latest vda", _add_index),
}
VERBS = tuple(_VERBS)
