"""How many requests a verb makes of an object store: each costs time and money, whatever it brings."""

from collections import Counter

import pytest
import stores

from nbdpull.operations import copy, listing, prune, restore, status, usage
from nbdpull.storage import s3_client

POINTS = 10
KIB = stores.KIB


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("requests") / "store", points=POINTS, size=800 * KIB)


@pytest.fixture
def asked(monkeypatch):
    """Factory: do something; {call: how many requests of it were made}."""
    made, real = Counter(), s3_client.Bucket._once

    def once(bucket, call, what):
        made[call] += 1
        return real(bucket, call, what)

    monkeypatch.setattr(s3_client.Bucket, "_once", once)

    def count(do, *args):
        made.clear()
        do(*args)
        return dict(made)

    return count


def test_what_the_verbs_ask_for(vm, object_store, asked, tmp_path):
    """A manifest each, and a file of the domain; files are listed, and not asked for one by one."""
    url, files = object_store.url, len(stores.files(vm.folder))
    copied = asked(copy.copy, copy.Options(str(vm.root), url))
    assert copied["put_object"] == files + 1 + POINTS  # the marker, and of each point for a time that it is set apart
    again = asked(copy.copy, copy.Options(str(vm.root), url))
    assert again.keys() == {"get_object", "list_objects_v2"} and again["get_object"] <= POINTS + 4
    assert asked(listing.listing, listing.Options(url)) == {"get_object": 2 * POINTS + 1, "list_objects_v2": 2}
    assert asked(status.status, status.Options(url))["get_object"] <= POINTS + 4
    assert asked(usage.usage, usage.Options(url)).keys() == {"get_object", "list_objects_v2"}
    restored = asked(restore.restore, restore.Options(url, output=str(tmp_path / "out")))
    assert restored.keys() == {"get_object", "list_objects_v2"} and restored["list_objects_v2"] <= 3
    pruned = asked(prune.prune, prune.Options(url, keep_last=6))
    assert "head_object" not in pruned and pruned["put_object"] == POINTS - 6
