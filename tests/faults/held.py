"""nbdpull, held when it reaches a phase: `held.py PHASE GATE ARGUMENTS…`. It reports that on stdout, and continues when
GATE exists. PHASE:N is the Nth time. No other thread passes the same place meanwhile, so exactly N of these steps were
done. PHASE+EVENT also reports each time that something else happens.

Everything else is the real program: while it is held, the test causes the faults from outside.
"""

import functools
import importlib
import os
import sys
import threading
import time

from nbdpull.cli import main as cli

# phase: the function, whether it is held after it and not before, at which call
PHASES = {
    "journaled": ("repository.new_point.NewPoint.announce", True, 1),
    "beginning": ("hypervisor.backup_job.Job._call_begin", False, 1),
    "begun": ("hypervisor.backup_job.Job._call_begin", True, 1),
    "reading": ("pulling.disk_copy.DiskCopy.read", False, 1),
    "copying": ("pulling.disk_copy.DiskCopy.add", True, 2),
    "copied": ("hypervisor.backup_job.Job.finish", False, 1),
    "ending": ("hypervisor.backup_traces.Traces._abort", True, 1),
    "ended": ("hypervisor.backup_job.Job.finish", True, 1),
    "committing": ("repository.new_point.NewPoint.commit", False, 1),
    "committed": ("repository.new_point.NewPoint.commit", True, 1),
    "dropping": ("pulling.superseded.drop", False, 1),
}
OTHERS = {
    "frozen": ("hypervisor.bindings.libvirt.virDomain.backupBegin", False, 1),
    "sealed": ("pulling.journal_files.Journal.sealed", True, 1),
    "sampling": ("pulling.sampling.Sample.add", True, 1),
    "started": ("hypervisor.power.Power._start_paused", True, 1),
    "decompressing": ("repository.image.Image.read_piece", False, 9),
    "judging": ("hypervisor.bindings.libvirt.virConnect.defineXML", True, 1),
    "token-written": ("api.job.Job.commit", False, 1),
    "restoring": ("targets.disk_restore.DiskRestore.add", True, 1),
}
_alarmed = []  # watches


def is_newly_alarmed(_, watch):
    """Return whether the watch has an error to report since this measurement. The measurements continue."""
    is_new = watch._error and watch not in _alarmed
    _alarmed.extend([watch] if is_new else [])
    return is_new


# event: the function after which it has happened, and whether, by what that returned and whose it is
EVENTS = {
    "alarmed": ("pulling.scratch_watch.ScratchWatch._look", is_newly_alarmed),
    "missed": ("hypervisor.domain_link.Link.lost", lambda lost, link: lost),  # libvirt's daemon
    "waited": ("nbd.libnbd.nbd.NBD.poll", lambda progress, handle: not progress),  # for QEMU
}


def say(event):
    """Print in one write: another thread may be printing, and a second write would split the line."""
    os.write(1, f'{{"event": "{event}"}}\n'.encode())


def hold(gate):
    say("held")
    while not os.path.exists(gate):
        time.sleep(0.01)


def hold_at(phase, gate):
    phase, _, nth = phase.partition(":")
    path, after, count = {**PHASES, **OTHERS}[phase]
    count = int(nth or count)
    calls, passing = [], threading.Lock()

    def held(original, *args, **options):
        with passing:
            calls.append(1)
            if not after and len(calls) == count:
                hold(gate)
            result = original(*args, **options)
            if after and len(calls) == count:
                hold(gate)
            return result

    replace(path, held)


def report(event):
    path, tells = EVENTS[event]

    def reporting(original, *args, **options):
        result = original(*args, **options)
        if tells(result, args[0]):
            say(event)
        return result

    replace(path, reporting)


def replace(path, function):
    """Replace a function of the package, "folder.module.Class.name", by another one that calls it."""
    folder, module, *owners, name = path.split(".")  # that verb's alone is imported: a restore does without libvirt
    owner = functools.reduce(getattr, owners, importlib.import_module(f"nbdpull.{folder}.{module}"))
    original = getattr(owner, name)

    @functools.wraps(original)
    def called(*args, **options):
        return function(original, *args, **options)

    setattr(owner, name, called)


if __name__ == "__main__":
    if "HELD_DAEMON_WAIT" in os.environ:
        importlib.import_module("nbdpull.hypervisor.domain_link").DAEMON_WAIT = float(os.environ["HELD_DAEMON_WAIT"])
    held_at, *told = sys.argv[1].split("+")
    hold_at(held_at, gate=sys.argv[2])
    for each in told:
        report(each)
    sys.exit(cli.main(sys.argv[3:]))
