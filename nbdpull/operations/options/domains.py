"""The options of the verbs around a backup of a domain: plan, doctor, cleanup and release."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ...core.choices import SHARED_DIR, STALL_TIMEOUT
from .threads import threads


@dataclass(frozen=True)
class PlanOptions:
    """The options of plan, as for pull. output None: plan for a new store."""

    domain: str
    output: Optional[str] = None
    since: Optional[str] = None
    full: bool = False
    uri: Optional[str] = None
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    scratch_dir: str = SHARED_DIR
    socket: Optional[str] = None
    nbd: Optional[str] = None
    tls: Optional[str] = None
    threads: int = field(default_factory=threads)
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DoctorOptions:
    """The options of doctor. domain None: check only the host."""

    domain: Optional[str] = None
    uri: Optional[str] = None
    scratch_dir: str = SHARED_DIR


@dataclass(frozen=True)
class CleanupOptions:
    """The options of cleanup.

    output: a store, None: clean up only what this machine has recorded of the domain's runs. dry_run: remove nothing.
    """

    domain: str
    output: Optional[str] = None
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = STALL_TIMEOUT


@dataclass(frozen=True)
class ReleaseOptions:
    """The options of release. dry_run: remove nothing."""

    domain: str
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = STALL_TIMEOUT


@dataclass(frozen=True)
class _OfCluster:
    """The options of every verb for kubevirt:NAMESPACE/VM but pull. kubeconfig, context: how to reach its cluster."""

    domain: str
    kubeconfig: Optional[str] = None
    context: Optional[str] = None
    stall_timeout: float = STALL_TIMEOUT


@dataclass(frozen=True)
class KubevirtPlanOptions(_OfCluster):
    """The options of plan, as for pull. output None: plan for a new store."""

    output: Optional[str] = None
    full: bool = False
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KubevirtDoctorOptions(_OfCluster):
    """The options of doctor."""


@dataclass(frozen=True)
class KubevirtCleanupOptions(_OfCluster):
    """The options of cleanup. output: the store, which is required. dry_run: remove nothing."""

    output: Optional[str] = None
    dry_run: bool = False


@dataclass(frozen=True)
class KubevirtReleaseOptions(_OfCluster):
    """The options of release. dry_run: remove nothing."""

    dry_run: bool = False
