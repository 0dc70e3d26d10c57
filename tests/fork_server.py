"""A process that has nbdpull imported, and forks itself for each command line; run as a program by command.py.

    fork_server.py FD

Each message on the socket FD is JSON {argv, env, cwd}, with four descriptors: where the pid and then the status are
told, and the new process's standard input, output and error. From the fork on the new process is what `python -m
nbdpull`, or `python held.py`, is behind its imports: it runs that file as `__main__`, and ends as Python ends, but for
the teardown of other libraries and of modules that hold nothing.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import re
import runpy
import select
import socket
import struct
import sys
import types
import warnings

MODULE = ["-m", "nbdpull"]
BINDINGS = {"libvirt", "libvirtmod", "libvirt_qemu", "libvirtmod_qemu", "nbd", "libnbdmod"}
TORN_DOWN = {"__main__", "builtins", "sys", "nbdpull", *BINDINGS}
CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
CONSTANT = (str, int, float, bytes, tuple, frozenset, type(None), re.Pattern)
CONSTANT_OF = {"__future__", "_struct", "logging", "pathlib", "types", "typing"}  # modules of more such types


def preload():
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process with threads cannot be forked in peace
    spared = {}  # {name: how many members a module of the package had; None: of another}
    atexit.register(spare, spared)  # before all others, so that it is called last
    import nbdpull

    for module in pkgutil.walk_packages(nbdpull.__path__, "nbdpull."):
        with contextlib.suppress(ImportError):  # no bindings here, or nbdkit's own module
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for library in ("kubernetes.config", "boto3"):  # which the package imports when it needs them: 0.5 s and 0.15 s
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(library)
    others = {name for name in sys.modules if name.partition(".")[0] not in TORN_DOWN}
    spared |= dict.fromkeys(others)
    spared |= {name: len(vars(module)) for name, module in package() if holds_nothing(module)}
    gc.collect()
    gc.freeze()


def package():
    return [(name, module) for name, module in sys.modules.items() if name.partition(".")[0] == "nbdpull"]


def holds_nothing(module):
    """Whether there are but functions, classes and constants in it, which no run changes."""
    members = [each for name, each in vars(module).items() if not name.startswith("__")]
    return all(isinstance(each, (*CODE, *CONSTANT)) or type(each).__module__ in CONSTANT_OF for each in members)


def spare(sizes):
    """Leave these modules out of the teardown, which begins now, unless they have got another size.

    Python ends by emptying every module, and a forked process copies each page for that: 60 of the 86 ms of CPU that
    `nbdpull --version` took. How the package and its C libraries end is looked at; that of numpy or rich is not ours.
    Of the package four modules in five hold nothing of a run.
    """
    kept = [sys.modules.pop(name) for name, size in sizes.items()
            if name in sys.modules and size in (None, len(vars(sys.modules[name])))]  # fmt: skip
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))  # for ever


def serve(control):
    """Return in each new process, with its command line; never in the server itself."""
    running = {}  # {descriptor that shows the end of a process: (its pid, where its status is told)}
    while True:
        for ready in select.select([control, *running], [], [])[0]:
            if ready in running:
                end(ready, *running.pop(ready))
                continue
            message, descriptors, _flags, _address = socket.recv_fds(control, 1 << 20, 4)
            if not message:
                os._exit(0)
            request, (answer, *standard) = json.loads(message), descriptors
            pid = started(
                request, standard, [control.fileno(), answer, *running, *(each for _, each in running.values())]
            )
            if pid == 0:
                control.detach()
                return request["argv"]
            running[os.pidfd_open(pid)] = pid, answer
            tell(answer, pid)


def started(request, standard, others):
    """The pid of a new process, in which this is 0 and `others` are closed."""
    ready, become_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        for descriptor in (ready, *others):
            os.close(descriptor)
        become(request, standard)
        os.close(become_ready)
        return 0
    for descriptor in (become_ready, *standard):
        os.close(descriptor)
    os.read(ready, 1)  # until it has no descriptor that nbdpull would not have
    os.close(ready)
    return pid


def end(descriptor, pid, answer):
    """Tell of the end of a process."""
    _pid, status = os.waitpid(pid, 0)
    tell(answer, status)
    os.close(descriptor)
    os.close(answer)


def tell(answer, number):
    with contextlib.suppress(BrokenPipeError):
        os.write(answer, struct.pack("i", number))


def become(request, standard):
    """Take the place of what Python would have set up of these at its start."""
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    for descriptor in {*standard} - {0, 1, 2}:
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin = os.fdopen(0, encoding=sys.stdin.encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # which would be the same in every process


def main():
    del sys.path[0]  # the tests' folder, which the program has not
    preload()
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    if words[:2] == MODULE:
        sys.argv = ["nbdpull", *words[2:]]
        runpy.run_module("nbdpull", run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
