"""What verify, drill and digest found, kept beside the points: sealed files of a series, each created once.

Owns: their names, and which of them is the newest for a point. They are no part of a point: no manifest names them, and
a reader of points ignores them. Must not know: how anything is verified or booted.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from datetime import datetime, timezone

from . import errors, format

VERIFY, DRILL, DIGEST = "verify", "drill", "digest"

_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6,16}\.(?P<kind>verify|drill|digest)\.json\Z", re.ASCII)


def entry(point):
    """How a finding names the Point that it is about: a point that was replaced since is another one."""
    return {"point": point.id, "manifest_sha256": point.sha256}


def now():
    """When and who, as every finding tells it."""
    return {"when": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "who": _who()}


def record(target, kind, **about):
    """Keep a finding in the Series; return its path relative to the store. OutputError where that cannot be written."""
    document = {"format": format.FORMAT, "requires": [], "kind": kind, **now(), **about}
    path = f"{target.folder}/{format.new_point_id()}.{kind}.json"
    target.store.publish(path, format.seal(document))
    return path


def attach(target, path, suffix, data):
    """Keep a file that belongs to the finding at `path`, such as a picture; return its path."""
    beside = f"{path[: -len('.json')]}.{suffix}"
    with target.store.create(beside) as file:
        file.write(data)
    return beside


def load(target):
    """Yield every finding of a Series, oldest first. One that cannot be read is as if it were not there."""
    found = []
    for name in target.store.files(target.folder):
        if _NAME.match(name):
            try:
                document = format.unseal(target.store.read(f"{target.folder}/{name}"), name)
                found.append((document["when"], name, document))
            except (errors.NbdpullError, KeyError):
                continue
    return [document for *_, document in sorted(found, key=lambda each: each[:2])]


def latest(target, points):
    """{point id: {kind: its newest finding, with the members that are about the point}}."""
    known = {point.id: point.sha256 for point in points}
    result: dict[str, dict] = {name: {} for name in known}
    for document in load(target):
        shared = {name: value for name, value in document.items() if name not in _SEALING}
        for about in document.get("points", []):
            if known.get(about.get("point")) == about.get("manifest_sha256"):
                result[about["point"]][document["kind"]] = {**shared, **about}
    return result


_SEALING = ("format", "requires", "digest", "points", "kind")


def _who():
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
