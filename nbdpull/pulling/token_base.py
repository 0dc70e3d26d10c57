"""The state that each disk of a backup starts from, chosen by a token.

Owns: when the checkpoint of a token can be a base. The rule for one disk is in base.decide. Must not know: what keeps
the data, NBD.
"""

from __future__ import annotations

from functools import partial
from typing import Optional

from ..core import errors
from ..definitions.domain_xml import Checkpoint, Disk, description
from ..format.manifest import FULL
from ..hypervisor.domain import Domain
from . import base, superseded
from .base import Base, Choice
from .token import Made, Token


def choose(vm: Domain, disks: list[Disk], token: Optional[Token]) -> Choice:
    """Decide what each disk starts from. token: if None, everything is read in full. OtherDomain if the token belongs
    to another domain."""
    if token is not None and token.domain != vm.uuid:
        raise errors.OtherDomain(f"the token is of another domain (uuid {token.domain}, {vm.name} has {vm.uuid})")
    given_back: list[str] = []
    found, why_none = _base(vm, disks, token, given_back) if token else (None, "requested")
    decisions = {disk.target: base.decide(disk, found, why_none) for disk in disks}
    if all(mode == FULL for mode, _ in decisions.values()):
        found = None
    choice = Choice(found, decisions, given_back=given_back)
    choice.warnings.extend(
        f"disk {target} is read in full although an incremental was expected ({reason})"
        for target, reason in choice.lost.items()
    )
    return choice


def _base(vm: Domain, disks: list[Disk], token: Token, given_back: list[str]) -> tuple[Optional[Base], str]:
    """Return (Base, ""), or (None, why there is none)."""
    if not vm.supports_checkpoints:
        return None, "no-checkpoint-support"
    made = token.checkpoint
    if made is None:
        return None, "no-checkpoint"
    if not vm.checkpoints.has(made.name):
        if not vm.checkpoints.give_back(as_checkpoint(made)):
            return None, "checkpoint-lost"
        given_back.append(made.name)
    checkpoint = vm.checkpoints.get(made.name)
    if not is_of(made, checkpoint):
        return None, "checkpoint-replaced"
    why = base.why_unfit(checkpoint, disks)
    return (None, why) if why else (Base(checkpoint, None, before=token.disks), "")


def of_checkpoint(checkpoint: Checkpoint, run: str) -> Made:
    """Return what a token records of the checkpoint that its backup made."""
    return Made(checkpoint.name, run, checkpoint.creation_time, list(checkpoint.disks))


def as_checkpoint(made: Made) -> Checkpoint:
    """Return the definition from which libvirt can restore a checkpoint that it has lost."""
    return Checkpoint(made.name, made.created, description(made.run, ""), dict.fromkeys(made.disks), "")


def is_of(made: Made, checkpoint: Checkpoint) -> bool:
    """Return whether this is the very checkpoint, not one of the same name from another time."""
    found = (checkpoint.name, checkpoint.creation_time, checkpoint.run_id)
    return (made.name, made.created, made.run) == found


def still_there(vm: Domain, token: Optional[Token]) -> list[Made]:
    """Return the checkpoints in a token that the domain still has."""
    names = set(vm.checkpoints.names()) if token and vm.supports_checkpoints else set()
    return [made for made in (token.made if token else []) if made.name in names]


def drop(vm: Domain, older: list[Made], new: Optional[str], warnings: list[str]) -> list[str]:
    """Delete the checkpoints that a newer one, `new`, replaces as a base; return the names of the deleted ones."""
    if new is None:
        return []
    return [made.name for made in older if superseded.deleted(vm, made.name, new, partial(is_of, made), warnings)]
