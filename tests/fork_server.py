"""A process that has imported nbdpull, and forks itself for each command line; command.py runs it as a program.

    fork_server.py FD

Each message on the socket FD is JSON {argv, env, cwd}, with four descriptors: the one to which the pid and later the
status are written, and the new process's standard input, output and error. After the fork, the new process is what
`python -m nbdpull`, or `python held.py`, is after its imports: it runs that file as `__main__`, and ends as Python
ends, except for the teardown of other libraries and of modules that hold nothing.
"""

import atexit
import contextlib
import ctypes
import functools
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
status = None  # with which a forked process ends
EXIT = ctypes.PyDLL(None).exit  # with Python's lock: no other thread goes on
CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
CONSTANT = (str, int, float, bytes, tuple, frozenset, slice, type(None), re.Pattern)
CONSTANT_OF = {  # modules of more such types
    "__future__", "_struct", "ctypes", "datetime", "logging", "numpy", "numpy.dtypes", "pathlib", "types", "typing"
}  # fmt: skip
SIZE = {dict: len, list: len, set: len, type(functools.cache(len)): lambda cache: cache.cache_info().currsize}


def preload():
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process with threads cannot be forked in peace
    spared = {}  # {name of a module of the package: what it held}
    atexit.register(leave, spared)  # before all others, so that it is called last
    import nbdpull

    for module in pkgutil.walk_packages(nbdpull.__path__, "nbdpull."):
        with contextlib.suppress(ImportError):  # no bindings here, or nbdkit's own module
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    # Which the package imports when it needs them: 0.5 s and 0.15 s.
    for library in ("kubernetes.config", "botocore.session"):
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(library)
    spared |= {name: tables(module) for name, module in package() if holds_nothing(module)}
    gc.collect()
    gc.freeze()


def package():
    return [(name, module) for name, module in sys.modules.items() if name.partition(".")[0] == "nbdpull"]


def holds_nothing(module):
    """Return whether a module contains only functions, classes and constants, which no run changes, and tables and
    caches."""
    members = [each for name, each in vars(module).items() if not name.startswith("__")]
    known = (*CODE, *CONSTANT, *SIZE)
    return all(isinstance(each, known) or type(each).__module__ in CONSTANT_OF for each in members)


def tables(module):
    """Return [(table or cache of a module, its size)]; the first one is the table of the module's members."""
    found = [vars(module), *(each for name, each in vars(module).items() if not name.startswith("__"))]
    return [(each, SIZE[type(each)](each)) for each in found if type(each) in SIZE]


def leave(spared):
    """End this process as Python does once threads have ended and all exit handlers have been called.

    Python would empty every module and free all that it knows, for which a forked process has to copy each page: 35 of
    the 42 ms of CPU that `nbdpull --version` took. Tests check how the package and its C libraries end, so modules of
    the package are emptied, except those (nine in ten) that contain nothing of a run: code, constants, and tables of
    unchanged size.
    """
    with contextlib.suppress(Exception):  # Python has its own way to tell of that
        sys.stdout.flush()
        sys.stderr.flush()
        if status is not None:
            for name, module in package():
                if any(SIZE[type(each)](each) != size for each, size in spared.pop(name, [({}, 1)])):
                    empty(vars(module))
            gc.collect()
            EXIT(status)


def empty(members):
    """Empty a module as Python does; the function that Python uses can be called only up to Python 3.12."""
    private = [name for name in members if name.startswith("_") and not name.startswith("__")]
    for name in [*private, *({*members} - {*private, "__builtins__"})]:
        members[name] = None


def serve(control):
    """Return in each new process, with its command line; never in the server itself."""
    running = {}  # {descriptor that shows the end of a process: (its pid, where its status is written)}
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
    """Fork a process and return its pid. In the new process, return 0, with `others` closed."""
    ready, become_ready = os.pipe()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.random()  # so that the next one is another one in each process
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
    """Report the end of a process."""
    _pid, status = os.waitpid(pid, 0)
    tell(answer, status)
    os.close(descriptor)
    os.close(answer)


def tell(answer, number):
    with contextlib.suppress(BrokenPipeError):
        os.write(answer, struct.pack("i", number))


def become(request, standard):
    """Give this process the requested descriptors, folder, variables and standard streams, as Python does at its
    start."""
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


def main():
    del sys.path[0]  # the tests' folder, which the program has not
    preload()
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    global status
    try:
        if words[:2] == MODULE:
            sys.argv = ["nbdpull", *words[2:]]
            runpy.run_module("nbdpull", run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code if isinstance(end.code, int) else None
        raise


if __name__ == "__main__":
    main()
