"""Hours that pass at once, by the clock of the stores of one class: existing files get that much older.

When a file was made is read from its own time, not reckoned from its age: a process that had to wait for a processor
between two looks at the clock took old files for new ones.
"""

import contextlib
import os
import time
from unittest import mock

from nbdpull.storage import s3_client
from nbdpull.storage.directory import DirectoryStore

COARSE = 5  # Linux's CLOCK_REALTIME_COARSE, which file systems go by


class Hours:
    """A clock that can be advanced. store: DirectoryStore, or S3Store."""

    def __init__(self, store):
        self._passed, self._is_directory = [], store is DirectoryStore
        if self._is_directory:
            patched = self._of_directories(store.seconds_since_change)
            self._patched = mock.patch.object(store, "seconds_since_change", patched)
        else:
            self._patched = mock.patch.object(s3_client, "_age", self._of_buckets())

    def _of_directories(self, real):
        def seconds(store, path, anew=False):
            return real(store, path, anew) + self._since(os.lstat(store.path(path)).st_ctime)

        return seconds

    def _of_buckets(self):
        real = s3_client._age
        return lambda answer, written: real(answer, written) + self._since(written.timestamp())

    def _since(self, made):
        return sum(hours * 3600 for when, hours in self._passed if made <= when)

    def let_pass(self, hours):
        when = time.time()
        self._passed.append((when, hours))
        while self._is_directory and time.clock_gettime(COARSE) <= when:  # a file made now would seem to be older
            time.sleep(0.001)
        time.sleep(0 if self._is_directory else 1)  # the times of a bucket are whole seconds

    def __enter__(self):
        self._patched.start()
        return self

    def __exit__(self, *exc):
        self._patched.stop()


@contextlib.contextmanager
def without_locks(store):
    """Inside this block, the store locks nobody out, like a bucket."""
    with mock.patch.multiple(store, has_locks=False, locked=lambda *_: contextlib.nullcontext()):
        yield
