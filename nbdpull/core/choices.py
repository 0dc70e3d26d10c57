"""What a user can choose from, and the defaults: the words that more than one layer knows.

The module that acts on a word knows its effect. Must not know: options, or how they are written.
"""

from __future__ import annotations

# QEMU's user must be able to enter it, which a home directory or a private folder seldom allows. And it is on a disk,
# while /tmp is often a tmpfs: scratch grows with what the guest overwrites and would use up the host's memory.
SHARED_DIR = "/var/tmp"
STALL_TIMEOUT = 60.0  # seconds that a server may be silent
FREEZE_TIMEOUT = 30  # seconds: for the freeze, and for the time that the guest is frozen
CACHE_BYTES = 64 << 20  # for decompressed frames of a disk

KUBEVIRT = "kubevirt:"  # prefix that names a virtual machine of KubeVirt instead of a domain
LATEST, ALL_POINTS = "latest", "all"  # instead of the id of a point
IMAGE_KINDS = ("qcow2", "raw")


class OnLostBase:
    """What to do with a disk whose expected base is lost, so that no incremental is possible."""

    FULL, FAIL = "full", "fail"
    WORDS = (FULL, FAIL)


class Resume:
    """Which dead run's job is resumed: one of the last hour, one of any age, none."""

    AUTO, ALWAYS, NEVER = "auto", "always", "never"
    WORDS = (AUTO, ALWAYS, NEVER)


class Offline:
    """How to pull a domain that is off."""

    AUTO, START_PAUSED, READ, REFUSE = "auto", "start-paused", "read", "refuse"
    WORDS = (AUTO, START_PAUSED, READ, REFUSE)


class Quiesce:
    """Whether the guest is frozen while the backup starts: if possible, always, never."""

    AUTO, REQUIRE, NEVER = "auto", "require", "never"
    WORDS = (AUTO, REQUIRE, NEVER)


class Level:
    """The level of a verification. The second one checks everything that the first one does, and more."""

    FILES, FRAMES = "files", "frames"
    WORDS = (FILES, FRAMES)


class LockMode:
    """Who can shorten the time for which a file is locked: nobody, or whoever has a special permission."""

    COMPLIANCE, GOVERNANCE = "compliance", "governance"
    WORDS = (COMPLIANCE, GOVERNANCE)


class BackupType:
    """What a KubeVirt backup contains: everything, or what changed since the previous checkpoint."""

    FULL, INCREMENTAL = "full", "incremental"
    WORDS = (FULL, INCREMENTAL)


class NotRepacked:
    """Why mostly dead files are not repacked: it was not requested."""

    OFF = "off"
    WORDS = (OFF,)


S3_ENDPOINT = "NBDPULL_S3_ENDPOINT"  # the variable that names the server of s3://…
CACHE_DIR, CACHE_DIR_SIZE = "NBDPULL_CACHE_DIR", "NBDPULL_CACHE_DIR_SIZE"  # a folder to cache what is read from there


class KeyAction:
    """What to do with the keys of a sealed store."""

    LIST, ADD, REMOVE, ROTATE, TEST, EXPORT = "list", "add", "remove", "rotate", "test", "export"
    WORDS = (LIST, ADD, REMOVE, ROTATE, TEST, EXPORT)
