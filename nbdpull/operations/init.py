"""Init: create an empty store before the first pull.

Must not know: what makes a place a store.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Optional

from ..core.errors import Check, Report
from ..repository import immutable, key_changes, marker, policies
from ..repository.policies import Immutability
from ..storage import place
from . import key, policy
from .options.stores import InitOptions as Options


@dataclass(frozen=True)
class Result:
    """The new store.

    uuid: of the store. master: id of its master key, None if it is not sealed. object_store: the abilities that its
    server was found to have, None for a directory. warnings: about the store, one text each. immutable: how new objects
    will be protected, None: not at all.
    """

    uuid: str
    master: Optional[str]
    object_store: Optional[dict[str, Any]] = None
    warnings: list[str] = field(default_factory=list)
    immutable: Optional[Immutability] = None


def init(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Create a store in a place that is new or empty.

    StoreError if it is neither, or if the server of an object store cannot hold a store, or lacks an ability that the
    options need; UsageError, OutputError, MissingSoftware.
    """
    wanted = policy.immutability(options)
    passphrase = key.passphrase(options.passphrase_file)
    sealed = options.recipients or passphrase is not None
    seal = key_changes.new(options.recipients, passphrase) if sealed else None
    protection = immutable.protection(wanted, datetime.now(timezone.utc)) if wanted else None
    unproved = place.require_locks(place.opened(options.store)) if protection else []
    made = marker.create(options.store, options.group, seal, protection)
    if wanted:
        policies.put_immutability(made, wanted)
    content = marker.of(made)
    probed = asdict(content.object_store) if content.object_store else None
    return Result(content.uuid, content.master, probed, [*made.warnings(), *unproved], wanted)
