"""Init: an empty store, before the first pull.

Must not know: what makes a place a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..core.errors import Check, Report
from ..repository import keyring, marker
from . import key
from .options import InitOptions as Options


@dataclass(frozen=True)
class Result:
    """uuid: of the new store. master: id of its master key, None where it is not sealed."""

    uuid: str
    master: Optional[str]


def init(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make a store of a place that is new or empty. StoreError where it is neither; UsageError, OutputError,
    MissingSoftware."""
    passphrase = key.passphrase(options.passphrase_file)
    sealed = options.recipients or passphrase is not None
    seal = keyring.new(options.recipients, passphrase) if sealed else None
    made = marker.create(options.store, options.group, seal)
    return Result(marker.uuid_of(made), marker.master_of(made))
