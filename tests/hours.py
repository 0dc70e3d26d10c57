"""Hours that pass at once, by the clock of the stores of one class: existing files get that much older."""

import contextlib
import time
from unittest import mock


class Hours:
    """A clock that can be advanced. resolution: seconds by which that class may overestimate the age of a file."""

    def __init__(self, store, resolution=0.02):
        self._passed, self._resolution = [], resolution
        self._patched = mock.patch.object(store, "seconds_since_change", self._of(store.seconds_since_change))

    def _of(self, real):
        def seconds(store, path, anew=False):
            age = real(store, path, anew)
            made = time.time() - age
            return age + sum(hours * 3600 for when, hours in self._passed if made <= when)

        return seconds

    def let_pass(self, hours):
        time.sleep(self._resolution)
        self._passed.append((time.time(), hours))
        time.sleep(self._resolution)

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
