"""What a bucket's server can do, as recorded in the marker of a store.

Separate from the trial (s3_probe.py), whose imports take longer than a whole verb that needs no object store. Owns:
what is recorded, and what the owner of a store should know about it. Must not know: how it was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

PREFIX = "+probe-"  # begins the name of the folder of a trial; no series can have such a name
_SKEW = 300.0  # seconds by which the host's clock may differ without a warning; from 900 on, servers refuse requests


@dataclass(frozen=True)
class Probed:
    """The result of trying a bucket. when: ISO 8601. server: the server's name for itself, "" if it gives none.
    checks_sha256: whether the server refuses data that do not match the SHA-256 sent along. clock_ahead: seconds by
    which this host's clock is ahead of the server's. The others describe the bucket, and are None if unknown.
    object_lock; default_retention: days for which each object is locked; versions: the server's word, "" for none;
    expires, old_expire: days after which lifecycle rules delete objects, or old versions of them."""

    when: str
    server: str
    checks_sha256: bool
    clock_ahead: float
    object_lock: Optional[bool] = None
    default_retention: Optional[int] = None
    versions: Optional[str] = None
    expires: Optional[int] = None
    old_expire: Optional[int] = None

    def warnings(self) -> list[str]:
        """Return what the owner of the store should know, one text per warning."""
        warnings = {
            f"the bucket locks each object for {self.default_retention} days: removed files take up space until then":
                self.default_retention is not None,
            f"a lifecycle rule of the bucket deletes objects after {self.expires} days, and points would lose files: "
                "remove it, or limit it to old versions": self.expires is not None,
            "the bucket keeps old versions: removed files take up space until a lifecycle rule deletes them":
                self.versions == "Enabled" and self.old_expire is None,
            f"the clock of this host is {abs(self.clock_ahead):.0f} s "
                f"{'ahead of' if self.clock_ahead > 0 else 'behind'} that of the server: set it":
                abs(self.clock_ahead) > _SKEW,
        }  # fmt: skip
        return [text for text, holds in warnings.items() if holds]
