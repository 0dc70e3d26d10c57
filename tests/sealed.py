"""Sealed stores for tests, either of one fixed master key, or to be opened by identities."""

import contextlib

from identities import path, recipient
from stores import KIB, MIB, Vm

from nbdpull.crypto import identity_files, keys
from nbdpull.repository import key_changes, keyring, marker

MASTER = bytes(range(100, 132))
KEYS = keys.of_master(MASTER)
OTHER = keys.of_master(bytes(32))
SECRET = b"Xy7-nobody-may-see-this-9Qz"  # contained only in a guest and its definition


def chain(root, points=3, store_keys=KEYS):
    """Return a small domain of two disks with points, each of which changes a part of the first one."""
    vm = Vm(root, keys=store_keys)
    vm.xml = f"<domain><name>vm1</name><description>{SECRET.decode()}</description></domain>"
    vm.files = {"nvram": SECRET * 10}
    vm.add_disk("vda", 256 * KIB)
    vm.add_disk("vdb", 3000)
    vm.write("vda", 1000, SECRET * 50)
    vm.write("vdb", 0, SECRET)
    vm.pull(chunk_size=KIB, batch_size=64 * KIB)
    for number in range(1, points):
        vm.write("vda", number * 64 * KIB + 7, SECRET + bytes([number]) * 100)
        vm.pull(dedupe=True)
    return vm


def sealed_store(root):
    """Make a sealed store that the identities age1 and ed25519 open; return its StoreKeys."""
    store = marker.create(str(root), seal=key_changes.new([recipient("age1"), recipient("ed25519")], None))
    return keyring.keys_of(store, identity_files.given([path("age1")]))


def filled(root):
    """Make a sealed store as `sealed_store` does, with two points."""
    vm = Vm(root, keys=sealed_store(root))
    vm.add_disk("vda", 256 * KIB)
    vm.write("vda", 0, b"guest" * 1000)
    vm.pull()
    vm.write("vda", 100 * KIB, b"more")
    vm.pull()
    return vm


@contextlib.contextmanager
def opening(monkeypatch, store_keys=KEYS):
    """Inside this block, use these keys to open sealed stores."""
    real = marker.open_store

    def opened(*args, **options):
        found = real(*args, **options)
        if found.seal.id is not None:
            marker.unlock(found, store_keys)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(marker, "open_store", opened)
        yield


def contains_secret(data, secret=SECRET):
    """Return whether bytes contain a part of the secret."""
    return any(secret[at : at + 8] in data for at in range(len(secret) - 8))


__all__ = [
    "KEYS",
    "KIB",
    "MASTER",
    "MIB",
    "OTHER",
    "SECRET",
    "Vm",
    "chain",
    "filled",
    "contains_secret",
    "opening",
    "sealed_store",
]
