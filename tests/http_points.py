"""The disks of a point over HTTP, served in this process."""

import threading
from contextlib import contextmanager

from nbdpull.core import errors
from nbdpull.operations import serve

TOKEN = "a-token-of-ours"


def token_file(folder):
    """Write a token to a file, and return its path."""
    path = folder / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return str(path)


@contextmanager
def served(vm, folder, **options):
    """Serve the disks of a point; give the server's events, the first of which is `serving`. folder: where a file for
    its token can be created."""
    events, begun, ended = [], threading.Event(), threading.Event()
    failed = []

    def report(**event):
        events.append(event)
        begun.set()

    def check():
        if ended.is_set():
            raise errors.Interrupted(15)

    def run():
        try:
            serve.serve(serve.Options(str(vm.root), token_file=token_file(folder), **options), report, check)
        except BaseException as error:
            failed.append(error)
        finally:
            begun.set()

    server = threading.Thread(target=run)
    server.start()
    try:
        begun.wait()
        if not failed:
            yield events
    finally:
        ended.set()
        server.join()
    if failed:
        raise failed[0]
