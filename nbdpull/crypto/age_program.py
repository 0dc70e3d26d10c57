"""age through the program `age`, if there is no pyrage. Secrets go through pipes, files in memory and a terminal of
ours.

No secret is an argument, in the environment, or in a file on a disk. Must not know: which words are recipients, what
calls it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from ..core import child, errors, software
from .recipients import PASSPHRASE, SSH, Identity

_OTHERWISE = "or Python 3.10 with pyrage (pip install 'nbdpull[seal]')"


def is_recipient(word: str, kind: str) -> bool:
    return _run(["age", "-r", word], b"") is not None


def is_identity(identity: Identity) -> bool:
    """Return whether age-keygen accepts it; True for any ssh key, which no program can check without a file of its
    kind."""
    if identity.kind == SSH:
        return True
    with _in_memory(identity.secret + b"\n") as file:
        return _run(["age-keygen", "-y", f"/dev/fd/{file}"], b"", file) is not None


def wrapped(secret: bytes, words: list[tuple[str, str]]) -> bytes:
    return _made(_run(["age", *(part for word, _ in words for part in ("-r", word))], secret))


def wrapped_by_passphrase(secret: bytes, passphrase: bytes) -> bytes:
    with _in_memory(secret) as file:
        return _made(_on_terminal(["age", "-p", f"/dev/fd/{file}"], passphrase + b"\n" + passphrase + b"\n", file))


def unwrapped(data: bytes, identity: Identity) -> Optional[bytes]:
    if identity.kind == PASSPHRASE:
        with _in_memory(data) as file:
            return _on_terminal(["age", "-d", f"/dev/fd/{file}"], identity.secret + b"\n", file)
    with _in_memory(identity.secret + b"\n") as file:
        return _run(["age", "-d", "-i", f"/dev/fd/{file}"], data, file)


def _made(found: Optional[bytes]) -> bytes:
    if found is None:
        raise errors.OutputError(
            "age failed to encrypt, though it accepts the recipients; try by hand: age -r RECIPIENT"
        )
    return found


@contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """Yield the descriptor of a file that is on no disk."""
    file = os.memfd_create("nbdpull")
    try:
        os.write(file, data)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _run(words: list[str], given: bytes, *files: int) -> Optional[bytes]:
    """Return the program's output; None if it fails. Without a terminal it cannot ask anybody."""
    _require()
    done = subprocess.run(words, input=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=files,
                          start_new_session=True)  # fmt: skip
    return done.stdout if done.returncode == 0 else None


def _on_terminal(words: list[str], typed: bytes, file: int) -> Optional[bytes]:
    """Run a program that asks for a passphrase, which it reads only from a terminal; return as `_run` does."""
    _require()
    ours, its = os.openpty()
    try:
        os.write(ours, typed)  # the line waits there: age changes the terminal's mode without discarding it
        die = child.ended_with_us()

        def prepare() -> None:
            die()
            fcntl.ioctl(its, termios.TIOCSCTTY, 0)

        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              pass_fds=(file, its), start_new_session=True, preexec_fn=prepare)  # fmt: skip
    finally:
        os.close(ours)
        os.close(its)
    return done.stdout if done.returncode == 0 else None


def _require() -> None:
    software.require("age", _OTHERWISE)
