"""The parent of a bed's libvirtd and of its orphaned QEMUs; libvirtd.py runs it as a program, and nothing imports it.

    supervisor.py FOLDER COMMAND...

It reads requests from standard input, one a line: `start`, `term`, `kill` (of the daemon), `alive`. It answers each
with a line: `ok` when it is done, or `dead`. The end of the input is the end of the bed, however the process at the
other end died: everything below this process is killed, and FOLDER removed.

It is a child subreaper for two reasons: everything that the daemon left behind is found without pid files, and a QEMU
that has ended is gone at once. If process 1 reaps slowly, libvirt takes the zombie for a running QEMU, and every end of
a VM takes seconds (measured: 1.8 s against 0.2 s).
"""

import ctypes
import os
import select
import shutil
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36


def children():
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children") as file:
        return [int(pid) for pid in file.read().split()]


def reap():
    """Collect every child that has ended; return their pids."""
    ended = set()
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)


class Supervisor:
    def __init__(self, command):
        self.command = command
        self.daemon = None
        self.ending = False
        self.wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def order(self, word):
        if word == "start":
            # not with subprocess: reap() collects the daemon like any other child
            self.daemon = os.posix_spawn(
                self.command[0],
                self.command,
                os.environ,
                file_actions=((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)),
            )
            answer("ok")
        elif word == "alive":
            answer("ok" if self.daemon else "dead")
        elif self.daemon is None:
            answer("ok")
        else:
            self.ending = True
            os.kill(self.daemon, signal.SIGKILL if word == "kill" else signal.SIGTERM)

    def collect(self):
        os.read(self.wake, 4096)
        if self.daemon in reap():
            self.daemon = None
            if self.ending:
                self.ending = False
                answer("ok")

    def run(self):
        while True:
            ready, _, _ = select.select([0, self.wake], [], [])
            if self.wake in ready:
                self.collect()
            if 0 in ready:
                text = os.read(0, 4096).decode()
                if not text:
                    return
                for word in text.split():
                    self.order(word)

    def end(self):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self.daemon:  # first, so that it starts nothing more
            os.kill(self.daemon, signal.SIGKILL)
        while children():
            for pid in children():
                os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def answer(word):
    os.write(1, word.encode() + b"\n")


def main():
    folder, command = sys.argv[1], sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    supervisor = Supervisor(command)
    try:
        supervisor.run()
    finally:
        supervisor.end()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
