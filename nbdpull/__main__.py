"""The entry of `nbdpull` and of `python3 -m nbdpull`."""

import gc
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, cast

from . import __version__

if TYPE_CHECKING:
    import io


def main() -> NoReturn:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C before the work begins is no reason for a traceback
    _fill_closed_streams()
    # A name that the terminal cannot show must end nothing.
    cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="backslashreplace")
    if sys.argv[1:] == ["--version"] and _printed_version():
        sys.exit()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy starts a thread for each core, for sums never asked for
    from .cli.main import main as run

    with suppress(ValueError, OSError):  # each point of a chain keeps its index open, each disk some chunk files
        few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(few, min(most, 1 << 16)), most))
    try:
        sys.exit(run())
    finally:
        gc.freeze()  # else Python looks through all of it for cycles as it ends: a fifth of the CPU time of a short run


def _fill_closed_streams() -> None:
    """Open what is closed of descriptors 0 to 2, before a file of ours gets such a number: programs that we start would
    write to it. A closed standard output can only be read then, so that printing fails, and nothing is lost silently.
    """
    for number, way in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, way), True)  # gets the lowest free number
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115 (None where it was closed)
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115


def _printed_version() -> bool:
    """Print the version without loading what a verb needs, because scripts ask for it; return whether that worked. If
    not, `cli` tries again, and reports the error."""
    try:
        print(f"nbdpull {__version__}", flush=True)
        return True
    except OSError:
        return False


if __name__ == "__main__":
    main()
