"""What an API server stores: objects by resource, namespace and name, their versions, and the events of a watch.

Owns: metadata (uid, resourceVersion, timestamps), finalizers, and the garbage collection of what an object owned. Must
not know: HTTP, or what the objects mean. One condition guards everything, and is notified at each change.
"""

import copy
import threading
import time
import uuid
from dataclasses import dataclass

CHANGED, GONE, ADDED = "MODIFIED", "DELETED", "ADDED"


@dataclass
class Event:
    version: int
    resource: str
    namespace: str
    kind: str
    item: dict


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Objects:
    def __init__(self):
        self.changed = threading.Condition(threading.RLock())
        self.version = 1000
        self.events = []
        self._items = {}  # {(resource, namespace, name): object}

    def get(self, resource, namespace, name):
        with self.changed:
            return copy.deepcopy(self._items.get((resource, namespace, name)))

    def all(self, resource, namespace=None):
        with self.changed:
            return [copy.deepcopy(item) for (kind, place, _), item in sorted(self._items.items())
                    if kind == resource and namespace in (None, place)]  # fmt: skip

    def wait(self, since, seconds):
        """Return (the events after that version, the current version), as soon as there are any events."""
        with self.changed:
            self.changed.wait_for(lambda: self.version > since, seconds)
            return [event for event in self.events if event.version > since], self.version

    def create(self, resource, namespace, item):
        with self.changed:
            metadata = item["metadata"]
            if "generateName" in metadata and not metadata.get("name"):
                metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
            metadata.update(namespace=namespace, uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
            return self._store(ADDED, resource, item)

    def update(self, resource, item):
        """Store a changed object. One whose last finalizer was removed is deleted."""
        with self.changed:
            metadata = item["metadata"]
            old = self._items.get((resource, metadata["namespace"], metadata["name"]))
            if old == item:
                return item
            if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
                return self._remove(resource, item)
            return self._store(CHANGED, resource, item)

    def delete(self, resource, namespace, name):
        """Delete an object; return it while a finalizer holds it, else None."""
        with self.changed:
            item = copy.deepcopy(self._items[resource, namespace, name])
            if item["metadata"].get("finalizers"):
                item["metadata"].setdefault("deletionTimestamp", now())
                return self._store(CHANGED, resource, item)
            self._remove(resource, item)
            return None

    def _store(self, kind, resource, item):
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        self._items[resource, namespace, name] = copy.deepcopy(item)
        self.events.append(Event(self.version, resource, namespace, kind, copy.deepcopy(item)))
        self.changed.notify_all()
        return item

    def _remove(self, resource, item):
        self._store(GONE, resource, item)
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        del self._items[resource, namespace, name]
        for (kind, place, other), each in list(self._items.items()):
            owners = [owner["uid"] for owner in each["metadata"].get("ownerReferences", [])]
            if place == namespace and item["metadata"]["uid"] in owners:
                self.delete(kind, place, other)
        return item
