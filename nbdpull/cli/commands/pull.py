"""pull: back up a domain."""

from __future__ import annotations

import argparse
import os
import shlex
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from ...core import freed_memory
from ...core.choices import BackupType, Offline, OnLostBase, Quiesce, Resume
from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.pulls import KubevirtOptions as Kubevirt
from ...operations.options.pulls import PullOptions as Options
from .. import machines, pruned, terminal, types, usage
from ..output import Outcome
from . import RESERVED

if TYPE_CHECKING:
    from ...operations.prune import Pruned

SUMMARY = "back up a domain"
EXAMPLE = "vm1 --since chk3 -o since-chk3/"
NICE = 0


def add(parser: usage.Parser) -> None:
    machines.add_domain(parser, Options)
    usage.add(parser, Options, "-o", "--output", metavar="DIR", required=True,
              help="the store: a new or empty directory, or an existing store")  # fmt: skip
    _add_checkpoints(parser)
    _add_guest(parser)
    usage.add_connect(parser, Options)
    usage.add_choice_of_disks(parser, Options)
    usage.add_scratch(parser, Options)
    usage.add_route(parser, Options)
    _add_speed(parser)
    _add_files(parser)
    _add_limits(parser)
    usage.add(parser, Options, "--prune", action="store_true",
              help="after the pull, remove the domain's points that its policy does not keep: "
              "see nbdpull policy")  # fmt: skip
    usage.add_group(parser, Options)
    _add_kubevirt(parser.add_argument_group("a virtual machine of KubeVirt"))
    usage.add_identities(parser, Options)
    usage.add_output(parser)


def _add_checkpoints(parser: usage.Parser) -> None:
    base = parser.add_mutually_exclusive_group()
    usage.add(base, Options, "--since", metavar="CHECKPOINT", help="pull what changed since this checkpoint")
    usage.add(base, Options, "--full", action="store_true", help="pull everything")
    made = parser.add_mutually_exclusive_group()
    usage.add(made, Options, "--checkpoint", metavar="NAME",
              help="name of the checkpoint to make (default: a unique one)")  # fmt: skip
    usage.add(made, Options, "--no-checkpoint", dest="make_checkpoint", action="store_false",
              help="make no checkpoint")  # fmt: skip
    usage.add(parser, Options, "--on-lost-base", choices=OnLostBase.WORDS,
              help="if a disk's base is lost: pull it in full, or fail")  # fmt: skip
    usage.add(parser, Options, "--resume", nargs="?", choices=Resume.WORDS, const=Resume.ALWAYS,
              help="resume the backup job of an interrupted run, if this pull would start the same job: from the last "
              "hour (auto), of any age (always, or --resume without a value), or never; "
              "write a value with '='")  # fmt: skip


def _add_guest(parser: usage.Parser) -> None:
    usage.add(parser, Options, "--offline", choices=Offline.WORDS,
              help="a domain that is off: start it with its CPUs paused, pull, and stop it again; read its images "
              "without a start, which makes no checkpoint; start it if possible, else read it (auto); or "
              "refuse")  # fmt: skip
    usage.add(parser, Options, "--quiesce", nargs="?", choices=Quiesce.WORDS, const=Quiesce.REQUIRE,
              help="freeze the guest's file systems while the backup starts: if possible (auto), or else fail "
              "(require, or --quiesce without a value), or never; write a value with '='")  # fmt: skip
    usage.add(parser, Options, "--freeze-timeout", metavar="S", type=types.in_range(5, 60),
              help="seconds that the freeze may last")  # fmt: skip


def _add_speed(parser: usage.Parser) -> None:
    usage.add(parser, Options, "--level", metavar="N", type=types.zstd_level,
              help="zstd compression level, 1 to 19; or auto: -1 to 3, whatever is fastest")  # fmt: skip
    usage.add_threads(parser, Options)
    usage.add(parser, Options, "--max-rate", metavar="N", type=types.size, help="limit reading: 50M is 50 MiB/s")
    usage.add(parser, Options, "--max-rate-file", metavar="FILE",
              help="read the rate limit from FILE; re-read while running; 0 = unlimited")  # fmt: skip
    usage.add(parser, Options, "--max-in-flight", metavar="N", type=types.in_range(1, 1024),
              help="most reads in flight at once")  # fmt: skip
    parser.add_argument("--nice", metavar="N", type=types.in_range(0, 19),
                        help=f"nice value of nbdpull's own processes (default: {NICE})")  # fmt: skip
    parser.add_argument("--gentle", action="store_true", help="give the guest priority: --max-in-flight 1 --nice 19")


def _add_files(parser: usage.Parser) -> None:
    usage.add(parser, Options, "--no-dedupe", dest="dedupe", action="store_false",
              help="store data again even if the parent holds it")  # fmt: skip
    usage.add(parser, Options, "--frame-size", metavar="N", type=types.frame_size,
              help="most bytes compressed as one block, 64K to 1M")  # fmt: skip
    usage.add(parser, Options, "--chunk-size", metavar="N", type=types.chunk_size,
              help="start a new chunk file at this size")  # fmt: skip


def _add_limits(parser: usage.Parser) -> None:
    usage.add_stall_timeout(parser, Options)
    usage.add(parser, Options, "--max-duration", metavar="T", type=types.duration, help="end a pull that takes longer")
    usage.add(parser, Options, "--scratch-limit", metavar="N", type=types.size,
              help="end a pull whose scratch space grows beyond this")  # fmt: skip
    usage.add(parser, Options, "--no-space-check", dest="space_check", action="store_false",
              help="start even if too little space seems to be free")  # fmt: skip


def _add_kubevirt(group: argparse._ActionsContainer) -> None:
    machines.add_cluster(group, Kubevirt)
    usage.add(group, Kubevirt, "--pvc", metavar="NAME", help="claim for the scratch (default: a temporary one)")
    usage.add(group, Kubevirt, "--http-map", metavar="URL", action="append",
              help="map endpoint of a volume of a backup: URL or VOLUME=URL, or with {volume} for each --disk "
              "(may be repeated)")  # fmt: skip
    usage.add(group, Kubevirt, "--http-data", metavar="URL", action="append",
              help="its data endpoint, in the same forms (default: the map's, with /data for /map)")  # fmt: skip
    usage.add(group, Kubevirt, "--ca", metavar="FILE", help="certificates in PEM that verify the server")
    usage.add(group, Kubevirt, "--token-file", metavar="FILE", help="file with the token of the backup")
    usage.add(group, Kubevirt, "--type", choices=BackupType.WORDS, help="type of the backup (status.type)")
    usage.add(group, Kubevirt, "--uuid", metavar="UUID", help="metadata.uid of the virtual machine")


_KINDS = machines.Kinds("pull", Options, Kubevirt, frozenset({"max_in_flight"}))


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    _KINDS.require(args)
    if machines.is_one(args.domain):
        return _run_kubevirt(args, report, check)
    return _run_libvirt(args, report, check)


def _run_kubevirt(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import description, kubevirt

    options = usage.options(Kubevirt, args)
    at_once = 1 if _be_gentle(args) else getattr(args, "max_in_flight", options.threads)
    options = replace(options, threads=min(options.threads, at_once))
    result = kubevirt.kubevirt(options, report, check)
    point = description.describe(result.point, None)
    following = next_kubevirt_command(options, getattr(args, "s3_endpoint", None))
    nothing = {"dropped_checkpoints": [], "reclaimed": [], "scratch_bytes": 0, "offline": None, "resumed": None,
               "scratch_growth": []}  # fmt: skip
    values = {"point": point["id"], "details": point, "next_command": following, "pruned": _pruned(result.pruned),
              "healed": _healed(result.healed), **nothing}  # fmt: skip
    lines = _lines(options.output, point, following, None, result.pruned)
    return Outcome(values, lines, domain=point["domain"], warnings=result.warnings)


def next_kubevirt_command(options: Kubevirt, server: Optional[str]) -> str:
    """Return the command line for the next point; if the endpoint was given, it repeats its URLs."""
    words = ["nbdpull", options.domain, *_option("-o", options.output), *(["--prune"] if options.prune else [])]
    words += _option("--s3-endpoint", server) if server else []
    if options.http_map:
        given = [("--http-map", options.http_map), ("--http-data", options.http_data)]
        words += [word for name, texts in given for text in texts for word in _option(name, text)]
        words += ["--type", BackupType.INCREMENTAL]
        words += _option("--since", options.checkpoint) if options.checkpoint else []
    cluster = [("--kubeconfig", options.kubeconfig), ("--context", options.context), ("--pvc", options.pvc)]
    single = [*cluster, ("--token-file", options.token_file), ("--ca", options.ca), ("--uuid", options.uuid)]
    words += [word for name, value in single if value for word in _option(name, value)]
    several = [("--disk", options.disks), ("--exclude", options.exclude)]
    return shlex.join([*words, *(word for name, texts in several for text in texts for word in _option(name, text))])


def _be_gentle(args: Namespace) -> bool:
    """Set our nice value; return whether the guest has priority."""
    gentle = getattr(args, "gentle", False)
    os.nice(19 if gentle else getattr(args, "nice", NICE))
    freed_memory.keep()
    return gentle


def _run_libvirt(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import description, pull

    options = usage.options(Options, args)
    if _be_gentle(args):
        options = replace(options, max_in_flight=1)
    options = replace(options, threads=min(options.threads, options.max_in_flight or 64))
    result = pull.pull(options, report, check)
    point = description.describe(result.point, result.omitted)
    following = next_command(options, point, getattr(args, "s3_endpoint", None))
    values = {
        "point": point["id"],
        "details": point,
        "next_command": following,
        "pruned": _pruned(result.pruned),
        "dropped_checkpoints": result.dropped_checkpoints,
        "reclaimed": [vars(item) for item in result.reclaimed],
        "scratch_bytes": result.scratch_bytes,
        "offline": result.offline,
        "resumed": result.resumed and result.resumed._asdict(),
        "scratch_growth": result.scratch_growth,
        "healed": _healed(result.healed),
    }
    lines = _lines(options.output, point, following, result.offline, result.pruned)
    return Outcome(values, lines, domain=point["domain"], warnings=result.warnings)


def next_command(options: Options, point: dict[str, Any], server: Optional[str]) -> str:
    """Return the command line for the next point. A plain pull continues a store, except from a partial point."""
    dashed = options.domain.startswith("-")
    words = ["nbdpull", *(["pull"] if dashed or options.domain in RESERVED else [])]
    words += [] if dashed else [options.domain]
    since = point["checkpoint"] or options.since
    words += _option("--since", since) if since and point["partial"] else []
    words += ["--prune"] if options.prune else []
    words += [] if options.make_checkpoint else ["--no-checkpoint"]
    words += _option("-o", options.output)
    words += _option("--s3-endpoint", server) if server else []
    words += ["-c", options.uri] if options.uri else []
    given = (("--nbd", options.nbd), ("--tls", options.tls))
    words += [word for name, value in given if value for word in (name, value)]
    words += [word for name in options.disks for word in ("--disk", name)]
    words += [word for name in options.exclude for word in ("--exclude", name)]
    return shlex.join([*words, "--", options.domain] if dashed else words)


def _option(name: str, value: str) -> list[str]:
    """Return an option and its value as words; a value that looks like an option is joined to its name."""
    if not value.startswith("-"):
        return [name, value]
    return [f"{name}={value}" if name.startswith("--") else name + value]


def _pruned(found: Optional[Pruned]) -> Optional[dict[str, Any]]:
    return pruned.members(found) if found else None


def _healed(found: Iterable[Any]) -> list[dict[str, Any]]:
    return [each._asdict() for each in found]


def _lines(output: str, point: dict[str, Any], following: str, offline: Any, found: Optional[Pruned]) -> Iterator[str]:
    yield f"{point['domain']}: point {point['id']} is in {output}"
    if offline:
        yield _OFFLINE[offline]
    if point["partial"]:
        yield f"It is partial: it contains only what changed since {point['since']}, so no whole image."
        if not point["checkpoint"] and offline != Offline.READ:
            yield "No checkpoint was made; --checkpoint NAME would make one to continue from."
    yield from ["", *terminal.disks(point), _total(point), "", *terminal.omitted(point)]
    if found and (found.removed or not found.problem):
        yield from pruned.lines(found, dry_run=False)
    if point["checkpoint"]:
        yield f"checkpoint: {point['checkpoint']}"
    yield f"next: {following}"


def _total(point: dict[str, Any]) -> str:
    """Return how much was read and stored, how long it took, and the rate of reading."""
    read, stored = (sum(disk[name] for disk in point["disks"]) for name in ("read_bytes", "stored_bytes"))
    seconds = point["seconds"]
    return (
        f"{size(read)} read, {size(stored)} stored in {sum(seconds.values()):.1f} s "
        f"({terminal.rate(read, seconds['copy'])})"
    )


_OFFLINE = {
    Offline.START_PAUSED: "The domain was off: it was started with its CPUs paused, and stopped again.",
    Offline.READ: "The domain is off: its images were read, and no checkpoint was made.",
}
