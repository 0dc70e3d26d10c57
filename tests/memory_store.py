"""A store in memory, with the interface of storage/base.py, so that tests show what needs no directory.

It promises less than a directory: a file does not exist before it is sealed, as in an object store.
"""

import contextlib
import hashlib

from nbdpull.core import errors
from nbdpull.crypto.seal import PLAIN
from nbdpull.storage.base import MAX_READ, Closing, Sealing


class MemoryStore:
    root, has_locks, chunk_size = "memory:", True, None
    protects, protection = False, None

    def __init__(self):
        self._held = set()
        self._files = {}  # {path: its bytes, None until it is sealed}
        self._folders = {""}
        self.seal = PLAIN

    def path(self, *names):
        return "/".join(["memory:", *names])

    # Reading

    def proved(self, read):
        return read()

    def several(self, work, items):
        return map(work, items)

    def read(self, path, limit=MAX_READ):
        data = self._data(path)
        if len(data) > limit:
            raise errors.Damaged(f"{self.path(path)}: the file has more than {limit} bytes, the maximum for its kind")
        return data

    def find(self, path, limit=MAX_READ):
        return self.read(path, limit) if self.holds(path) else None

    def _data(self, path):
        if path in self._folders:
            raise errors.Damaged(f"{self.path(path)}: cannot be read: Is a directory")
        if self._files.get(path) is None:
            raise errors.Damaged(f"{self.path(path)}: the file is missing")
        return self._files[path]

    def read_range(self, path, offset, length):
        return self.open_reader(path).read(offset, length)

    def open_reader(self, path, again=False, through=False):
        return MemoryReader(self.path(path), self._data(path))

    def size(self, path):
        if path in self._folders and path:
            raise errors.Damaged(f"{self.path(path)}: cannot be read: Is a directory")
        data = self._files.get(path)
        return None if data is None else len(data)

    def sha256(self, path, check=lambda: None):
        data = self._data(path)
        check()
        return hashlib.sha256(data).hexdigest()

    def free_bytes(self):
        return None

    def folders(self, path=""):
        return self._within(path, self._folders - {""})

    def files(self, path=""):
        return self._within(path, {name for name, data in self._files.items() if data is not None})

    def names(self, path):
        return sorted([*self.folders(path), *self._within(path, self._files)])

    def looking(self, path, anew=False):
        return contextlib.nullcontext()

    def holds(self, path):
        return path in self._files or path in self._folders

    def seconds_since_change(self, path, anew=False):
        if not self.holds(path):
            raise errors.OutputError(f"cannot inspect {self.path(path)}: No such file or directory")
        return 0.0

    def inode(self, path):
        return None

    def is_same(self, path, other):
        return other == self.path(path) or None

    def warnings(self):
        return []

    def _within(self, path, names):
        if self._is_through_a_file(f"{path}/"):
            raise errors.StoreError(f"cannot read {self.path(path)}: Not a directory")
        return sorted(name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == path)

    def _is_through_a_file(self, path):
        names = path.split("/")
        return any("/".join(names[:depth]) in self._files for depth in range(1, len(names)))

    # Creating

    def make_folder(self, path, fresh=False):
        if path in self._files or (path in self._folders and fresh):
            raise self._exists("create the folder", path)
        self._require_parent("create the folder", path)
        self._folders.add(path)

    def _exists(self, doing, path):
        return errors.OutputExists(f"cannot {doing} {self.path(path)}: it exists already; nothing is ever overwritten")

    def _require_parent(self, doing, path):
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            raise errors.OutputError(f"cannot {doing} {self.path(path)}: there is no directory {self.path(folder)}")

    def create(self, path):
        if path in self._files or path in self._folders:
            raise self._exists("create", path)
        self._require_parent("create", path)
        self._files[path] = None
        return MemoryWriter(self._files, path)

    def publish(self, path, data, protection=None):
        with self.create(path) as file:
            file.write(data)

    def protect(self, paths, protection):
        raise errors.StoreError("memory: nothing can be locked")

    def protected_until(self, path):
        return None

    def remove_file(self, path):
        self._files.pop(path, None)

    def remove_folder(self, path):
        gone = {name for name in {*self._files, *self._folders} if name == path or name.startswith(f"{path}/")}
        self._folders -= gone
        for name in gone & set(self._files):
            del self._files[name]

    def delete(self, path):
        if path in self._folders:
            raise errors.OutputError(f"cannot remove {self.path(path)}: Is a directory")
        self.remove_file(path)

    def rename(self, path, new):
        if self._files.get(path) is None:
            raise errors.OutputError(f"cannot rename {self.path(path)}: No such file or directory")
        if self.holds(new):
            raise self._exists("rename", path)
        self._files[new] = self._files.pop(path)

    def replace(self, path, data, was=None):
        with self.replacing(path) as file:
            file.write(data)

    @contextlib.contextmanager
    def replacing(self, path):
        self._require_parent("create", path)
        if path in self._folders:
            raise errors.OutputError(f"cannot create {self.path(path)}: Is a directory")
        made = {path: None}
        with MemoryWriter(made, path) as file:
            yield file
        self._files.update(made)

    def make_durable(self, path):
        self._data(path)

    def sync_folder(self, path):
        pass

    @contextlib.contextmanager
    def locked(self, path, doing, holder=lambda: "another nbdpull"):
        if path in self._held:
            raise errors.Busy(f"{holder()} writes to {self.path(path)}; {doing} when it has ended")
        self._held.add(path)
        try:
            yield
        finally:
            self._held.remove(path)


class MemoryReader(Closing):
    def __init__(self, full_path, data):
        self._full_path, self._data, self.size = full_path, data, len(data)

    def read(self, offset, length):
        if offset + length > self.size:
            raise errors.Damaged(f"{self._full_path}: the file is cut short")
        return self._data[offset : offset + length]

    def close(self):
        pass


class MemoryWriter(Sealing):
    def __init__(self, files, path):
        self.path = path
        self._files, self._data = files, bytearray()
        self._open = True

    @property
    def size(self):
        return len(self._data)

    def write(self, data):
        if not self._open:
            raise errors.OutputError(f"cannot write to memory:/{self.path}: it is closed, or an earlier write failed")
        self._data += data

    def sha256(self):
        return hashlib.sha256(self._data).hexdigest()

    def seal(self):
        self.write(b"")
        self._files[self.path] = bytes(self._data)
        self._open = False

    def close(self):
        if self._open:
            del self._files[self.path]
        self._open = False
