"""nbdpull, held where it reaches a phase: `held.py PHASE GATE ARGUMENTS…`. Says so on stdout, goes on when GATE exists.
PHASE:N is its Nth time. No other thread passes the same place meanwhile, so that N times is what was done, and no more.

Everything else is the real program: the faults are done to it from outside while it stands there.
"""

import functools
import json
import os
import sys
import threading
import time

import libvirt

from nbdpull import cli, disk_copy, domain, domain_link, journal, plan, pull, series

# phase: the function, whether it is held after it and not before, at which call
PHASES = {
    "journaled": (journal.Journal, "__init__", True, 1),
    "beginning": (domain.Job, "_call_begin", False, 1),
    "begun": (domain.Job, "_call_begin", True, 1),
    "reading": (disk_copy.DiskCopy, "read", False, 1),
    "copying": (disk_copy.DiskCopy, "add", True, 2),
    "copied": (domain.Job, "finish", False, 1),
    "ending": (domain.Job, "_abort", True, 1),
    "ended": (domain.Job, "finish", True, 1),
    "committing": (series.NewPoint, "commit", False, 1),
    "committed": (series.NewPoint, "commit", True, 1),
    "dropping": (pull._Run, "_drop_superseded", False, 1),
}
OF_FREEZE = {"frozen": (libvirt.virDomain, "backupBegin", False, 1)}
OF_CHUNKS = {"sealed": (journal.Journal, "sealed", True, 1)}
OF_PLAN = {"sampling": (plan._Sample, "add", True, 1)}
OF_OFFLINE = {"started": (domain.Domain, "_start_paused", True, 1)}


def hold(gate):
    print(json.dumps({"event": "held"}), flush=True)
    while not os.path.exists(gate):
        time.sleep(0.01)


def hold_at(phase, gate):
    phase, _, nth = phase.partition(":")
    owner, name, after, count = {**PHASES, **OF_FREEZE, **OF_CHUNKS, **OF_PLAN, **OF_OFFLINE}[phase]
    count = int(nth or count)
    original, calls, passing = getattr(owner, name), [], threading.Lock()

    @functools.wraps(original)
    def held(*args, **options):
        with passing:
            calls.append(1)
            if not after and len(calls) == count:
                hold(gate)
            result = original(*args, **options)
            if after and len(calls) == count:
                hold(gate)
            return result

    setattr(owner, name, held)


if __name__ == "__main__":
    domain_link.DAEMON_WAIT = float(os.environ.get("HELD_DAEMON_WAIT", domain_link.DAEMON_WAIT))
    hold_at(*sys.argv[1:3])
    sys.exit(cli.main(sys.argv[3:]))
