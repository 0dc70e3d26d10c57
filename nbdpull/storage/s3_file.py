"""One open file of a store in a bucket, being read or created. base.py documents each call.

Owns: where bytes wait until they are sent. Must not know: the other files, how a request is made.
"""

from __future__ import annotations

import hashlib
import tempfile
from typing import IO, Callable, Optional, Union

from ..core import errors, temporary
from .base import Closing, Sealing
from .s3_client import Body

Put = Callable[[Union[bytes, Body], int, bytes], None]  # (the data to send, their size, their SHA-256)

_IN_MEMORY = 8 << 20  # bytes of a file being written; a larger one waits in an unnamed temporary file
_AT_ONCE = 64 << 10  # bytes of a file that is sent without asking first (Expect: 100-continue), which is a round trip
_BLOCK = 1 << 20  # bytes that are sent by one system call


class S3Reader(Closing):
    """A file that is open for reading. Safe for several threads at once. read: function that returns its bytes for
    (offset, length)."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self.size = size
        self._read = read

    def read(self, offset: int, length: int) -> bytes:
        return self._read(offset, length)

    def close(self) -> None:
        pass


class _Blocks:
    """A file to be sent, in large blocks: urllib3 asks for 16 KiB each time, and for each Python's lock changes hands
    twice."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """Return the next block, which may have more bytes than asked for; b"" at the end."""
        return self._file.read(max(size, _BLOCK))

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer, as far as there is data. Where awscrt is installed, it signs in place of botocore, and reads
        into buffers of its own, in which no more than asked for fits."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class S3Writer(Sealing):
    """A file being created. It is sent when it is sealed, so nothing is visible before. url: the name for messages."""

    def __init__(self, path: str, url: str, put: Put) -> None:
        self.path, self.size = path, 0
        self._url, self._put = url, put
        self._sha256 = hashlib.sha256()
        self._body: Optional[tempfile.SpooledTemporaryFile[bytes]] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        body = self._opened()
        try:
            body.write(data)
        except OSError as error:
            self.close()
            where = temporary.place()
            raise errors.OutputError(
                f"cannot write to {self._url}: {error.strerror} in {where}, where it waits to be uploaded; set "
                "TMPDIR to another directory"
            ) from error
        self._sha256.update(data)
        self.size += len(data)

    def _opened(self) -> tempfile.SpooledTemporaryFile[bytes]:
        if self._body is None:
            raise errors.OutputError(f"cannot write to {self._url}: it is closed, or an earlier write failed")
        return self._body

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def seal(self) -> None:
        try:
            body = self._opened()
            self._put(_Blocks(body) if self.size > _AT_ONCE else _all(body), self.size, self._sha256.digest())
        finally:
            self.close()

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _all(body: IO[bytes]) -> bytes:
    body.seek(0)
    return body.read()
