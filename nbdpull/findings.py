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

_NAME = re.compile(r"(?P<id>\d{8}T\d{6}Z-[0-9a-f]{6,16})\.(?P<kind>verify|drill|digest)\.json\Z", re.ASCII)


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
    """Every finding of a Series, oldest first, as dicts, each with its `id`. One that cannot be read, or is not of this
    form, is as if it were not there."""
    found = []
    for name in target.store.files(target.folder):
        if match := _NAME.match(name):
            try:
                document = format.unseal(target.store.read(f"{target.folder}/{name}"), name)
            except errors.NbdpullError:
                continue
            document["id"] = match["id"]
            if _is_sound(document):
                found.append(document)
    return sorted(found, key=lambda document: (document["when"], document["id"]))


def _is_sound(document):
    """Whether the members that are counted on are what they should be."""
    try:
        entries = document["points"]
        good = _are(str, document["kind"], document["when"]) and _are(list, entries)
        if document["kind"] == VERIFY:
            shard = document.get("shard") or [1, 1]
            good = good and _are(str, document["level"]) and _are(int, *shard) and len(shard) == 2
            good = good and all(_are(int, about["damages"]) for about in entries)
        return good and all(map(_is_sound_entry, entries))
    except (KeyError, TypeError, AttributeError):
        return False


def _is_sound_entry(about):
    if type(about["point"]) is not str or type(about["manifest_sha256"]) is not str:
        return False
    places, settles = about.get("places", []), about.get("settles", [])
    return _are(list, places, settles) and _are(str, *settles) and all(map(_is_sound_place, places))


def _is_sound_place(place):
    named = all(name is None or type(name) is str for name in (place.get("disk"), place.get("path")))
    return named and 0 <= (place.get("offset") or 0) < 1 << 64


def _are(kind, *values):
    return all(type(value) is kind for value in values)


def by_point(found, points, kind):
    """{point id: [(finding, its entry about that point), …], oldest first}; found: what `load` gives."""
    known = {point.id: point.sha256 for point in points}
    result: dict[str, list] = {name: [] for name in known}
    for document in found:
        for about in document["points"] if document["kind"] == kind else []:
            if known.get(about["point"]) == about["manifest_sha256"]:
                result[about["point"]].append((document, about))
    return result


def newest(found, points, kind):
    """{point id: the members of the newest finding of that kind, with those that are about the point; {} for none}."""
    each = by_point(found, points, kind)
    return {name: {**about[-1][0], **about[-1][1]} if about else {} for name, about in each.items()}


def _who():
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
