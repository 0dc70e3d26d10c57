"""Command lines of nbdpull, each in a process of its own. Knows only how the package is started.

Python's start with all imports takes 0.25 s of CPU, and the suite runs about a thousand command lines. So they are
forked from a process that has imported the package (fork_server.py). A test that needs a new program, for example
because it sets a variable that Python or a library reads at its start, gets one.

All output of --json is validated against the published schemas, whatever a test checks.
"""

import contextlib
import io
import json
import os
import pty
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
ANSWER = struct.Struct("i")  # of the server: first the pid, then the status from waitpid
AT_THE_START = ("PYTHON", "LD_", "LC_", "LANG", "LIBVIRT_DEBUG", "LIBVIRT_LOG", "TZ")  # variables read at the start


def environment():
    """Return an environment in which `python -m nbdpull` runs the package under test, from any folder."""
    return {**os.environ, "PYTHONPATH": str(PROJECT), "NBDPULL_DEBUG": ""}


def start_nbdpull(*words, program=("-m", "nbdpull"), child=False, **options):
    """Start a command line and return its Popen, with its output in pipes. Read its JSON events with `next_event`.

    program: a program other than nbdpull itself, such as held.py. child: start it as a direct child of this process.
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
    """Run a command line to its end and return what subprocess.run returns, with output as text."""
    with start_nbdpull(*words, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def on_a_terminal(*words):
    """Run a command line whose standard error is a terminal, and require that it succeeds; return (its standard output,
    the bytes that the terminal got)."""
    ours, theirs = pty.openpty()
    with start_nbdpull(*words, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 65536):
                shown += part
        output = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    return output, shown


def run_bytes(*words, **options):
    """Run a command line as `nbdpull` does, with output as bytes, and require that it prints no traceback."""
    done = nbdpull(*words, text=False, **options)
    assert b"Traceback" not in done.stderr
    return done


def unfolded(text):
    """Return a text that was folded into lines as one line."""
    return " ".join(text.split())


def doctor(*words):
    """Run `doctor --json`; return its exit code and {subject: its check}."""
    done = nbdpull("doctor", "--json", *words)
    return done.returncode, {each["subject"]: each for each in json.loads(done.stdout)}


def said(*words):
    """Run a command line in this process, which saves Python's start; return its standard output. It must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert cli.main(list(map(str, words))) == 0, "the reason is in the captured stderr"
    schemas.check_output(words, output.getvalue())
    return output.getvalue()


def answered(capsys, *words):
    """Run a command line, which may fail, in this process; return (exit code, standard output, standard error)."""
    code = cli.main([*map(str, words)])
    return code, *capsys.readouterr()


def answered_json(capsys, *words):
    """Run a command line with --json in this process; return (exit code, its parsed output, standard error)."""
    code, output, errors = answered(capsys, *words, "--json")
    schemas.check_output([*words, "--json"], output)
    return code, json.loads(output), errors


def answered_last(capsys, *words):
    """Do as `answered_json`; of a verb that prints lines, return the last one."""
    code, output, errors = answered(capsys, *words, "--json")
    schemas.check_output([*words, "--json"], output)
    return code, json.loads(output) if words[0] in schemas.DOCUMENTS else last_event(output), errors


def start_held(phase, gate, *words, **options):
    """Start a command line that halts when it reaches a phase of faults/held.py, until `gate` exists; return its
    Popen."""
    gate.unlink(missing_ok=True)
    process = start_nbdpull(*words, program=(HELD, phase, gate), **options)
    next_event(process, "held")
    return process


def next_event(process, wanted):
    """Read the events of a started command up to the first one of that name, and return it."""
    for line in process.stdout:
        event = json.loads(line)
        schemas.check_line(schemas.verb_of(process.words), event)
        if event["event"] == wanted:
            return event
    raise AssertionError(f"no event {wanted}: {process.stderr.read()}")


def last_event(text):
    return json.loads(text.splitlines()[-1])


class Command(subprocess.Popen):
    """A Popen of a command line, whose output is validated once it has been read to its end."""

    words = ()

    def communicate(self, input=None, timeout=None):
        output, errors = super().communicate(input, timeout)
        schemas.check_output(self.words, output)
        return output, errors


class Forked(Command):
    """A Popen whose process is forked from the server, which reports its exit status: this process is not its
    parent."""

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
        if self._answer.fileno() < 0:  # left running by a failed test, then collected; Popen polls all such
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
    """Return the socket of a server that forks processes as this process would start them now."""
    kind = inherited()
    if kind not in _running:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, str(SERVER), str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment())
        _running[kind] = ours, process  # closing the socket ends the server, also if this process is killed
    return _running[kind][0]


def inherited():
    """Return what a forked process inherits from the server and a test may have changed: users, mounts, limits,
    variables."""
    limits = [resource.getrlimit(number) for number in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)]
    mask = os.umask(0)
    os.umask(mask)
    return (*os.getresuid(), mask, os.readlink("/proc/self/ns/mnt"), *limits, *at_the_start(os.environ))


def at_the_start(variables):
    return sorted(item for item in variables.items() if item[0].startswith(AT_THE_START))
