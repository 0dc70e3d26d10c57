"""Command lines of nbdpull, each in a process of its own. Knows of the package only how it is started.

Python's start with all imports takes 0.25 s of CPU, and the suite runs some thousand command lines. So they are forked
from a process that has the package imported (fork_server.py). What asks for something that only a new program has,
such as a variable that Python or a library reads at its start, gets one.

What is printed with --json is held to the published schemas, whatever a test looks at.
"""

import contextlib
import io
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path

import schemas

from nbdpull.cli import main as cli

PROJECT = Path(__file__).resolve().parent.parent
HELD = PROJECT / "tests/faults/held.py"
SERVER = Path(__file__).with_name("fork_server.py")
FORKABLE = {"env", "cwd", "stdin", "stdout", "stderr", "text", "bufsize", "encoding", "errors", "universal_newlines"}
ANSWER = struct.Struct("i")  # of the server: first the pid, then the status that waitpid gives
AT_THE_START = ("PYTHON", "LD_", "LC_", "LANG", "LIBVIRT_DEBUG", "LIBVIRT_LOG", "TZ")  # variables that are read then


def environment():
    """In which `python -m nbdpull` is the package under test, wherever it is run."""
    return {**os.environ, "PYTHONPATH": str(PROJECT), "NBDPULL_DEBUG": ""}


def start_nbdpull(*words, program=("-m", "nbdpull"), child=False, **options):
    """Start a command line; the Popen, its output in pipes. Its JSON events are read with `next_event`.

    program: another one than nbdpull itself, such as held.py. child: it has to be a child of this very process.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {"env": environment(), **pipes, "text": True, **options}
    line = [*map(str, [*program, *words])]
    if not child and set(options) <= FORKABLE and at_the_start(options["env"]) == at_the_start(environment()):
        process = Forked(line, **options)
    else:
        process = Command([sys.executable, *line], **options)
    process.words = words
    return process


def nbdpull(*words, timeout=100, **options):
    """Run a command line to its end; what subprocess.run returns, with texts."""
    with start_nbdpull(*words, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_bytes(*words, **options):
    """The same with its output as bytes, in which there is no traceback."""
    done = nbdpull(*words, text=False, **options)
    assert b"Traceback" not in done.stderr
    return done


def doctor(*words):
    """Its exit code, and what it tells by subject."""
    done = nbdpull("doctor", "--json", *words)
    return done.returncode, {each["subject"]: each for each in json.loads(done.stdout)}


def said(*words):
    """Run one command line in this process, which saves Python's start; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert cli.main(list(map(str, words))) == 0, "the reason is in the captured stderr"
    schemas.check_output(words, output.getvalue())
    return output.getvalue()


def answered(capsys, *words):
    """The same of one that may fail: (exit code, standard output, standard error)."""
    code = cli.main([*map(str, words)])
    return code, *capsys.readouterr()


def answered_json(capsys, *words):
    """(exit code, what it prints with --json, standard error)."""
    code, output, errors = answered(capsys, *words, "--json")
    schemas.check_output([*words, "--json"], output)
    return code, json.loads(output), errors


def start_held(phase, gate, *words, **options):
    """The same of a command line that stands where it has reached a phase of faults/held.py, until `gate` exists."""
    gate.unlink(missing_ok=True)
    process = start_nbdpull(*words, program=(HELD, phase, gate), **options)
    next_event(process, "held")
    return process


def next_event(process, wanted):
    """Read a started command's events up to the first one of that name; return it."""
    for line in process.stdout:
        event = json.loads(line)
        schemas.check_line(schemas.verb_of(process.words), event)
        if event["event"] == wanted:
            return event
    raise AssertionError(f"no event {wanted}: {process.stderr.read()}")


def last_event(text):
    return json.loads(text.splitlines()[-1])


class Command(subprocess.Popen):
    """A Popen of a command line whose output is checked as it is read to its end."""

    words = ()

    def communicate(self, input=None, timeout=None):
        output, errors = super().communicate(input, timeout)
        schemas.check_output(self.words, output)
        return output, errors


class Forked(Command):
    """A Popen whose process is forked from the server, and whose end is told by another process than its parent."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags,
                       shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *others):  # fmt: skip
        request = json.dumps({"argv": args, "env": env, "cwd": os.fspath(cwd or os.getcwd())})
        standard = [own if other < 0 else other for own, other in enumerate((p2cread, c2pwrite, errwrite))]
        self._answer, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(server(), [request.encode()], [theirs.fileno(), *standard])
        self.pid = self._answered()
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _try_wait(self, wait_flags):
        if self._answer.fileno() < 0:  # collected while it ran, as a failed test leaves it; Popen asks for all such
            return self.pid, 0
        ready, _, _ = select.select([self._answer], [], [], 0 if wait_flags else None)
        return (self.pid, self._answered()) if ready else (0, 0)

    def _internal_poll(self, _deadstate=None):
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)
        return self.returncode

    def _answered(self):
        return ANSWER.unpack(self._answer.recv(ANSWER.size, socket.MSG_WAITALL))[0]


# -- the server -------------------------------------------------------------------------------------------------------

_running = {}  # {what a new process would inherit: the socket of its server, and its Popen}


def server():
    """The socket of a server for processes as this one would start them now."""
    kind = inherited()
    if kind not in _running:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, str(SERVER), str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment())
        _running[kind] = ours, process  # the socket's end is the server's, also where this process is killed
    return _running[kind][0]


def inherited():
    """What a forked process has of the server, and the test may have changed: users, mounts, limits, variables."""
    limits = [resource.getrlimit(number) for number in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)]
    mask = os.umask(0)
    os.umask(mask)
    return (*os.getresuid(), mask, os.readlink("/proc/self/ns/mnt"), *limits, *at_the_start(os.environ))


def at_the_start(variables):
    return sorted(item for item in variables.items() if item[0].startswith(AT_THE_START))
