"""Verbs that take a virtual machine of KubeVirt instead of a domain: which of the two it is, and its options.

Must not know: what a verb does.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from dataclasses import fields
from typing import NamedTuple, Optional

from ..core import errors
from ..core.choices import KUBEVIRT
from . import usage


def is_one(domain: Optional[str]) -> bool:
    return domain is not None and domain.startswith(KUBEVIRT)


def add_domain(parser: usage.Parser, of: type) -> None:
    usage.add(parser, of, "domain", metavar="DOMAIN", help=f"name of the libvirt domain, or {KUBEVIRT}NAMESPACE/VM")


def add_cluster(group: argparse._ActionsContainer, of: type) -> None:
    usage.add(group, of, "--kubeconfig", metavar="FILE",
              help="how to reach the cluster (default: as kubectl, or the pod's own account)")  # fmt: skip
    usage.add(group, of, "--context", metavar="NAME", help="context of the kubeconfig")


class Kinds(NamedTuple):
    """The Options of a verb for domains, and for virtual machines. both: options that the latter understands as
    well."""

    verb: str
    domains: type
    machines: type
    both: frozenset[str] = frozenset()

    def require(self, args: Namespace) -> None:
        """Raise UsageError if an option was given that only the other kind has."""
        own, others, why = self.domains, self.machines, f"is for {KUBEVIRT}NAMESPACE/VM"
        if is_one(getattr(args, "domain", None)):
            own, others, why = self.machines, self.domains, f"is not for {KUBEVIRT}NAMESPACE/VM"
        for name in sorted(_names(others) - _names(own) - self.both):
            if hasattr(args, name):
                option = _SPELLED.get(name, "--" + name.replace("_", "-"))
                raise errors.UsageError(f"{option} {why}; see nbdpull help {self.verb}")


def _names(of: type) -> set[str]:
    return {field.name for field in fields(of)}


_SPELLED = {"make_checkpoint": "--no-checkpoint", "uri": "--connect", "output": "-o"}
