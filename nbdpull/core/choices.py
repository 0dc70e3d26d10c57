"""What a user can choose from, and what is chosen where he says nothing: the words that more than one layer knows.

What a word does, the module knows that acts on it. Must not know: options, or how they are written.
"""

from __future__ import annotations

# QEMU's user must be able to enter it, which a home directory or a private folder seldom allows; and it is on a disk,
# while /tmp is a tmpfs in many places: scratch grows with what the guest overwrites and would eat the host's memory.
SHARED_DIR = "/var/tmp"
STALL_TIMEOUT = 60.0  # seconds that a server may be silent
FREEZE_TIMEOUT = 30  # seconds: of the freeze, and of the time that the guest stands still
CACHE_BYTES = 64 << 20  # for decompressed frames of a disk

KUBEVIRT = "kubevirt:"  # begins what names a virtual machine of KubeVirt instead of a domain
LATEST, ALL_POINTS = "latest", "all"  # instead of the id of a point
IMAGE_KINDS = ("qcow2", "raw")


class OnLostBase:
    """What becomes of a disk that no incremental can be made of, though one was to be expected."""

    FULL, FAIL = "full", "fail"
    WORDS = (FULL, FAIL)


class Resume:
    """Which dead run's job is gone on with: one of the last hour, of any age, none."""

    AUTO, ALWAYS, NEVER = "auto", "always", "never"
    WORDS = (AUTO, ALWAYS, NEVER)


class Offline:
    """How a domain that is off is pulled."""

    AUTO, START_PAUSED, READ, REFUSE = "auto", "start-paused", "read", "refuse"
    WORDS = (AUTO, START_PAUSED, READ, REFUSE)


class Quiesce:
    """Whether the guest is frozen while the backup begins: where it can be, in any case, not at all."""

    AUTO, REQUIRE, NEVER = "auto", "require", "never"
    WORDS = (AUTO, REQUIRE, NEVER)


class Level:
    """Of a verification. The second one looks at all that the first one does."""

    FILES, FRAMES = "files", "frames"
    WORDS = (FILES, FRAMES)


class LockMode:
    """Who can shorten the time for which a file is locked: nobody, or who has a right of his own."""

    COMPLIANCE, GOVERNANCE = "compliance", "governance"
    WORDS = (COMPLIANCE, GOVERNANCE)


class BackupType:
    """What a KubeVirt backup holds: all, or what changed since the checkpoint before."""

    FULL, INCREMENTAL = "full", "incremental"
    WORDS = (FULL, INCREMENTAL)


class NotRepacked:
    """Why no mostly dead files are repacked: it was not wanted, or the store is one in which that is not done."""

    OFF, OBJECT_STORE = "off", "object-store"
    WORDS = (OFF, OBJECT_STORE)


S3_ENDPOINT = "NBDPULL_S3_ENDPOINT"  # the variable that names the server of s3://…
CACHE_DIR, CACHE_DIR_SIZE = "NBDPULL_CACHE_DIR", "NBDPULL_CACHE_DIR_SIZE"  # a folder for what is read from there


class KeyAction:
    """What is done to the keys of a sealed store."""

    LIST, ADD, REMOVE, ROTATE, TEST, EXPORT = "list", "add", "remove", "rotate", "test", "export"
    WORDS = (LIST, ADD, REMOVE, ROTATE, TEST, EXPORT)
