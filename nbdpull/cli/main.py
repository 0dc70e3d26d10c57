"""The command line: arguments in; lines, JSON and an exit code out. With __main__, the only file that prints or exits.

Owns: messages, signals, and what each verb is given. Must not know: how a verb does its work. Verbs are imported when
they run, so that --help and --version start at once and restore works where libvirt is not installed.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from contextlib import contextmanager, suppress

from ..core import errors
from . import arguments


def _threads(args):
    return args.threads or min(len(os.sched_getaffinity(0)) + 2, 16)


# Verbs: each returns (result object, lines for a person, exit code)


def _pull(args, report, check):
    from ..operations import listing, pull

    in_flight = 1 if args.gentle else args.max_in_flight
    os.nice(19 if args.gentle else args.nice)
    _keep_freed_memory()
    options = pull.Options(
        domain=args.domain,
        output=args.output,
        since=args.since,
        full=args.full,
        on_lost_base=args.on_lost_base,
        resume=args.resume,
        checkpoint=args.checkpoint,
        make_checkpoint=not args.no_checkpoint,
        uri=args.connect,
        disks=args.disk,
        exclude=args.exclude,
        offline=args.offline,
        quiesce=args.quiesce,
        freeze_timeout=args.freeze_timeout,
        **_scratch(args),
        socket=args.socket,
        nbd=args.nbd,
        tls=args.tls,
        level=args.level,
        threads=min(_threads(args), in_flight or 64),
        max_in_flight=in_flight,
        max_rate=args.max_rate,
        max_rate_file=args.max_rate_file,
        dedupe=not args.no_dedupe,
        frame_size=args.frame_size,
        chunk_size=args.chunk_size,
        stall_timeout=args.stall_timeout,
        max_duration=args.max_duration,
        scratch_limit=args.scratch_limit,
        space_check=not args.no_space_check,
        group=args.group,
    )
    result = pull.pull(options, report, check)
    described = listing.describe(result.point, result.partial, result.omitted)
    next_command = _next_command(args, described)
    outcome = {
        "point": described,
        "next_command": next_command,
        "dropped_checkpoints": result.dropped_checkpoints,
        "reclaimed": [vars(item) for item in result.reclaimed],
        "scratch_bytes": result.scratch_bytes,
        "offline": result.offline,
        "resumed": result.resumed and result.resumed._asdict(),
        "scratch_growth": result.scratch_growth,
        "warnings": result.warnings,
    }
    return outcome, _pull_text(args, described, next_command, result.offline), 0


def _scratch(args):
    return {"scratch_dir": args.scratch_dir} if args.scratch_dir else {}


def _keep_freed_memory():
    """Frames come and go by the thousand. glibc would give the memory of each back to the kernel, which has to clear
    it again: 30,000 page faults and 4 % of the CPU time of a pull of 2 GB. Another C library has no such call."""
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, size in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 128 << 20)):
            library.mallopt(option, size)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _next_command(args, point):
    """The command line that goes on from this point."""
    dashed = args.domain.startswith("-")
    words = ["nbdpull", *(["pull"] if dashed or args.domain in arguments.VERBS else [])]
    words += [] if dashed else [args.domain]
    since = point["checkpoint"] or (args.since if point["partial"] else None)
    words += _option("--since", since) if since else []
    words += ["--no-checkpoint"] if args.no_checkpoint else []
    words += _option("-o", args.output)
    words += ["-c", args.connect] if args.connect else []
    words += [word for name, value in (("--nbd", args.nbd), ("--tls", args.tls)) if value for word in (name, value)]
    words += [word for name in args.disk for word in ("--disk", name)]
    words += [word for name in args.exclude for word in ("--exclude", name)]
    return shlex.join([*words, "--", args.domain] if dashed else words)


def _option(name, value):
    """An option and its value as words; a value that looks like an option is joined to its name."""
    if not value.startswith("-"):
        return [name, value]
    return [f"{name}={value}" if name.startswith("--") else name + value]


def _pull_text(args, point, next_command, offline):
    from . import terminal

    lines = [f"{point['domain']}: point {point['id']} is in {args.output}"]
    lines += [_OFFLINE[offline]] if offline else []
    if point["partial"]:
        lines.append(
            f"It is partial: it holds what changed since {point['since']}, and makes no whole image by itself."
        )
        if not point["checkpoint"] and offline != "read":
            lines.append("No checkpoint was made: --checkpoint NAME makes one to go on from.")
    lines += ["", *terminal.disks(point), "", *terminal.omitted(point)]
    if point["checkpoint"]:
        lines.append(f"checkpoint: {point['checkpoint']}")
    return [*lines, f"next: {next_command}"]


_OFFLINE = {
    "start-paused": "The domain was off: it was started with its CPUs paused, and ended again.",
    "read": "The domain is off: its images were read, and no checkpoint was made.",
}


def _cleanup(args, report, check):
    from ..operations import cleanup

    options = cleanup.Options(args.domain, args.output, args.connect, args.dry_run, args.stall_timeout)
    found = cleanup.cleanup(options, report, check).found
    lines = [f"{item.what}: {f'left: {item.left}' if item.left else 'removed'}" for item in found]
    lines = lines or ["nothing to clean up"]
    code = errors.Busy.exit_code if any(item.left for item in found) and not args.dry_run else 0
    return {"domain": args.domain, "found": [vars(item) for item in found], "warnings": []}, lines, code


def _release(args, report, check):
    from ..operations import release

    options = release.Options(args.domain, args.connect, args.dry_run, args.stall_timeout)
    found = release.release(options, report, check).found
    lines = [f"{item.what}: {f'left: {item.left}' if item.left else 'removed'}" for item in found]
    if any(not item.left for item in found):
        lines.append("The next pull into each store reads every disk in full.")
    code = errors.HypervisorError.exit_code if any(item.left for item in found) and not args.dry_run else 0
    outcome = {"found": [vars(item) for item in found], "warnings": []}
    return outcome, lines or ["nothing to release"], code


def _restore(args, report, check):
    from ..operations import restore

    if args.json and "-" in [args.output, *(place for _, place in args.to)]:
        raise errors.UsageError("--json and a disk cannot both go to stdout")
    options = restore.Options(
        store=args.store,
        output=args.output,
        domain=args.domain,
        point=args.point,
        disks=args.disk,
        to=_by_disk([*args.to, *args.onto]),
        kind=args.format,
        image_options=args.image_options,
        secrets=_by_disk(args.encrypt_disk),
        force=args.force,
        verify=not args.no_verify,
        space_check=not args.no_space_check,
        onto=bool(args.onto),
        delta=args.delta,
        salvage=args.salvage,
        define=args.define,
        name=args.name,
        new_uuid=args.new_uuid,
        trust_definition=args.trust_definition,
        uri=args.connect,
        threads=_threads(args),
    )
    result = restore.restore(options, report, check)
    next_command = _restore_next(args, result)
    outcome = {**vars(result), "point": result.point.id, "lost": [vars(loss) for loss in result.lost]}
    outcome["next_command"] = next_command
    return outcome, _restore_text(result, next_command), errors.Damaged.exit_code if result.lost else 0


def _by_disk(pairs):
    if len({disk for disk, _ in pairs}) != len(pairs):
        raise errors.UsageError("a disk has two targets, or two secrets")
    return dict(pairs)


def _restore_next(args, result):
    """The shell command that brings the restored domain up, or first to its definition, where that has other disks;
    None where the disk went to stdout."""
    from ..format import layout

    if "-" in result.files.values():
        return None
    uri = result.defined["uri"] if result.defined else args.connect
    virsh, path = ["virsh", *(["-c", uri] if uri else [])], result.beside.get(layout.DOMAIN_XML)
    named = f"--domain={result.domain}" if result.domain.startswith("-") else result.domain
    steps = [] if result.defined or not path else [[*virsh, "define", f"./{path}" if path.startswith("-") else path]]
    steps.append([*virsh, "edit" if result.misplaced else "start", named])
    return " && ".join(map(shlex.join, steps))


def _restore_text(result, next_command):
    """What was restored; nothing where the disk itself went to stdout."""
    from . import terminal

    lost = [_lost_text(loss) for loss in result.lost]
    if "-" in result.files.values():
        _complain(*lost)
        return []
    lines = [f"point {result.point.id} restored in {result.seconds:.1f} s:", *terminal.restored(vars(result))]
    lines += [f"{name}: {path}" for name, path in result.beside.items()]
    if result.defined:
        lines.append("domain {name} (uuid {uuid}) is defined at {uri}".format(**result.defined))
    for disk in result.misplaced:
        lines.append(f"disk {disk} is {result.formats[disk]} at {result.files[disk]}: let its definition say so")
    return [*lines, *lost, f"next: {next_command}"]


def _lost_text(loss):
    if loss.disk is None:
        return f"LOST {loss.problem}"
    return f"LOST {loss.disk}: bytes {loss.offset} to {loss.offset + loss.length}: {loss.problem}"


def _verify(args, report, check):
    from ..operations import verify
    from . import terminal

    if args.against is not None:
        return _verify_against(args, report, check)
    if args.disk or args.format:
        raise errors.UsageError("--disk and --format are for --against")
    part = {"sample": args.sample, "shard": args.shard, "max_duration": args.max_duration}
    options = verify.Options(
        args.store, args.domain, args.point, args.level, keep=not args.no_record, threads=_threads(args), **part
    )
    found = verify.verify(options, report, check)
    outcome = {
        "points": found.points,
        "files": found.files,
        "frames": found.frames,
        "raw_bytes": found.raw_bytes,
        "level": args.level,
        "sample": args.sample,
        "shard": args.shard,
        "complete": found.complete,
        "damages": [vars(damage) for damage in found.damages],
        "verdicts": [each._asdict() for each in found.verdicts],
        "too_new": [vars(each) for each in found.too_new],
        "warnings": found.warnings,
    }
    refused = errors.FormatTooNew.exit_code if found.too_new else 0
    return outcome, terminal.verified(outcome), errors.Damaged.exit_code if found.is_bad else refused


def _verify_against(args, report, check):
    from ..operations import compare
    from . import terminal

    part = {"sample": args.sample, "shard": args.shard, "max_duration": args.max_duration}
    chosen = {"domain": args.domain, "point": args.point or "latest", "disk": args.disk, "kind": args.format}
    found = compare.compare(
        compare.Options(args.store, args.against, threads=_threads(args), **chosen, **part), report, check
    )
    outcome = {
        "domain": found.point.manifest.domain,
        "point": found.point.id,
        "disk": found.disk,
        "equal": found.equal,
        "sample": args.sample,
        "shard": args.shard,
        "complete": found.complete,
        "size": found.size,
        "compared_bytes": found.compared_bytes,
        "differences": [{"offset": offset, "length": length} for offset, length in found.differences],
        "warnings": [],
    }
    return outcome, terminal.compared(args.against, outcome), errors.Differs.exit_code if found.differences else 0


def _digest(args, report, check):
    from ..operations import digest
    from . import terminal

    options = digest.Options(args.store, args.domain, args.point, args.disk, not args.no_record, _threads(args))
    found = digest.digest(options, report, check)
    points = [{"id": point.id, "disks": disks} for point, disks in found.points]
    rows = [(point["id"], disk, value) for point in points for disk, value in point["disks"].items()]
    lines = terminal.table(("POINT", "DISK", "DIGEST"), rows)
    return {"domain": found.domain, "points": points, "warnings": found.warnings}, lines, 0


def _serve(args, report, check):
    from ..operations import serve

    options = serve.Options(
        store=args.store,
        domain=args.domain,
        point=args.point,
        disks=args.disk,
        socket=args.socket,
        port=args.port,
        writable=args.writable,
        cache_bytes=args.cache,
    )
    with suppress(errors.Interrupted):  # that is how it ends
        serve.serve(options, report if args.json else _tell_serving, check)
    return {"warnings": []}, [], 0


def _tell_serving(event, **values):
    if event == "trouble":
        _complain(values["message"])
    else:
        from . import terminal

        _say(*terminal.serving(values))


def _drill(args, report, check):
    from ..operations import drill

    options = drill.Options(
        store=args.store,
        domain=args.domain,
        point=args.point,
        uri=args.connect,
        expect=args.expect,
        timeout=args.timeout,
        **({"work_dir": args.work_dir} if args.work_dir else {}),
        keep=not args.no_record,
    )
    found = drill.drill(options, report, check)
    outcome = {
        "domain": found.point.manifest.domain,
        "point": found.point.id,
        "when": found.when,
        "who": found.who,
        "verdict": found.verdict,
        "reason": found.reason,
        "seconds": found.seconds,
        "waited_for": found.waited_for,
        "console": found.console,
        "screenshot": found.screenshot_path,
        "warnings": found.warnings,
    }
    if found.verdict == drill.OK:
        return outcome, [f"point {found.point.id} was up after {found.seconds} s"], 0
    lines = [f"FAILED point {found.point.id}: {found.reason}"]
    lines += ["its console ends so:", *found.console.rstrip().split("\n")] if found.console.strip() else []
    return outcome, lines, errors.DrillFailed.exit_code


def _plan(args, report, check):
    from ..operations import plan
    from . import terminal

    chosen = {"disks": args.disk, "exclude": args.exclude, "since": args.since, "full": args.full}
    where = {"uri": args.connect, **_scratch(args), "socket": args.socket}
    where = {**where, "nbd": args.nbd, "tls": args.tls}
    options = plan.Options(args.domain, args.output, threads=_threads(args), **chosen, **where)
    told = vars(plan.plan(options, report, check))
    _complain(*(f"warning: {warning}" for warning in told["warnings"]))
    _show_or_print(args, told, terminal.plan)
    return None, [], 0


def _doctor(args, report, check):
    from ..operations import doctor
    from . import terminal

    options = doctor.Options(args.domain, args.connect, **_scratch(args))
    findings = doctor.doctor(options, report, check).findings
    _show_or_print(args, [vars(finding) for finding in findings], terminal.doctor)
    return None, [], max((each.exit_code for each in findings), default=0)


def _list(args, report, check):
    from ..operations import listing
    from . import terminal

    points, refused = listing.points(args.store)
    _complain(*(f"warning: {error}" for error in refused))
    _show_or_print(args, points, terminal.points)
    return None, [], max((error.exit_code for error in refused), default=0)


def _show(args, report, check):
    from ..operations import listing
    from . import terminal

    if args.xml:
        target, point = listing.find_point(args.store, args.point, args.domain)
        _show_text(target.definition(point))
        return None, [], 0
    _show_or_print(args, listing.point(args.store, args.point, args.domain), terminal.show)
    return None, [], 0


def _index(args, report, check):
    from ..operations import listing

    target, point = listing.find_point(args.store, args.point, args.domain)
    if args.rebuild:
        from ..operations import rebuild

        _say(rebuild.rebuild(target, point, args.disk))
        return None, [], 0
    for record in listing.records(target, point, args.disk):
        check()
        _print_json(record)
    return None, [], 0


_RUN = {
    "pull": _pull,
    "plan": _plan,
    "doctor": _doctor,
    "cleanup": _cleanup,
    "release": _release,
    "restore": _restore,
    "verify": _verify,
    "digest": _digest,
    "serve": _serve,
    "drill": _drill,
    "list": _list,
    "show": _show,
    "index": _index,
}

_SCHEMA = 1  # of the events: another number where a member goes, or means another thing
_ONE_DOCUMENT = ("list", "show", "index", "plan", "doctor")  # the others print events with --json


# Running


def main(argv=None):
    """Run one command line; return the exit code."""
    args, as_json = None, False
    try:
        args = _parsed(sys.argv[1:] if argv is None else list(argv))
        as_json = args.json and args.verb not in _ONE_DOCUMENT
        with _stopping() as check:
            code = _run(args, as_json, check)
        with _output():
            sys.stdout.flush()
        return code
    except errors.NbdpullError as error:
        return _failed(error, as_json, args)
    except BrokenPipeError:  # whoever read our output went away
        return 128 + signal.SIGPIPE
    except MemoryError:
        return _failed(errors.NbdpullError(errors.NO_MEMORY), as_json, args)
    except Exception as error:
        if os.environ.get("NBDPULL_DEBUG"):
            raise
        what = f"internal error: {type(error).__name__}: {error}; set NBDPULL_DEBUG=1 for the traceback, and report it"
        return _failed(errors.NbdpullError(what), as_json, args)


def _parsed(argv):
    with _output():
        try:
            return arguments.parser().parse_args(_with_verb(argv))
        finally:
            sys.stdout.flush()  # of a --help, before the exit that it ends in


def _with_verb(argv):
    """A first word that is no verb is a domain, and options before it are those of pull."""
    if argv and argv[0] not in (*arguments.VERBS, "-h", "--help", "--version"):
        return ["pull", *argv]
    return argv


def _run(args, as_json, check):
    from . import terminal

    if as_json:
        outcome, _, code = _RUN[args.verb](args, _Events(), check)
        _print_result(ok=code == 0, exit_code=code, **outcome)
        return code
    if getattr(args, "quiet", True):
        outcome, lines, code = _RUN[args.verb](args, lambda **event: None, check)
        lines = lines if code else []
    else:
        with terminal.Bars("read_bytes" if args.verb == "pull" else "written_bytes") as bars:
            outcome, lines, code = _RUN[args.verb](args, bars, check)
    _complain(*(f"warning: {warning}" for warning in (outcome or {}).get("warnings", [])))
    _say(*lines)
    return code


def _say(*lines):
    """Print lines for a person, on standard output."""
    from . import terminal

    for line in lines:
        _print(terminal.plain(line))


def _complain(*lines):
    """The same on standard error."""
    from . import terminal

    with suppress(OSError):
        for line in lines:
            print(f"nbdpull: {terminal.plain(line)}", file=sys.stderr)


def _show_or_print(args, value, shown):
    """The result of a verb that prints one document; shown: of terminal, makes lines of it for a person."""
    if args.json:
        _print_json(value, indent=1)
    else:
        _say(*shown(value))


def _show_text(text):
    """A document, to the byte where no terminal reads it."""
    if sys.stdout.isatty():
        _say(*text.splitlines())
    else:
        _print(text, end="")


def _print_json(value, indent=None):
    _print(json.dumps(value, indent=indent))


def _print_event(event, **values):
    when = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    _print(json.dumps({"event": event, "time": when, **values}), flush=True)


def _print_result(**values):
    _print_event("result", schema=_SCHEMA, **values)


def _print(text, end="\n", flush=False):
    with _output():
        print(text + end, end="", flush=flush)  # in one piece, where nothing is buffered: others may write there, too


@contextmanager
def _output():
    """Turn what a full disk or a closed pipe says to standard output into an error of ours, or a BrokenPipeError."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest would fail again, in Python's exit
        if isinstance(error, BrokenPipeError):
            raise
        raise errors.OutputError(f"cannot write to standard output: {error.strerror}") from error


class _Events:
    """Prints events as JSON lines: of progress so many as a program can use, of all others every one."""

    INTERVAL = 0.1  # seconds

    def __init__(self):
        self._next = 0.0

    def __call__(self, event, **values):
        if event == "progress":
            if values.get("position") != values.get("size") and time.monotonic() < self._next:
                return
            self._next = time.monotonic() + self.INTERVAL
        _print_event(event, **values)


def _failed(error, as_json, args):
    left = getattr(error, "left_behind", [])
    if as_json:
        with suppress(OSError, errors.OutputError):  # whoever should read it may be gone
            _print_result(ok=False, exit_code=error.exit_code, code=error.code, domain=_domain(args),
                          message=str(error), left_behind=left)  # fmt: skip
    _complain(str(error), *left)
    return error.exit_code


def _domain(args):
    """The domain that a command is about: that which it names, or the only one of its store; None if there is none."""
    if args.domain is not None or "store" not in args:
        return args.domain
    from ..operations import listing

    with suppress(errors.NbdpullError):
        return listing.only_domain(args.store)
    return None


@contextmanager
def _stopping():
    """Turn INT, TERM and HUP into a flag that the work looks at; give the function that raises when it is set."""
    got = []

    def check():
        if got:
            raise errors.Interrupted(got[0], f"stopped by {signal.Signals(got[0]).name}")

    # One that is ignored stays so: that is how nohup works.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: got.append(n)) for number in heard}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
