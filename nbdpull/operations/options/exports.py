"""The options of run and expose, which give a backup to other programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from .jobs import Backup, Job


@dataclass(frozen=True)
class _ToCommand:
    domain: str
    command: list[str]


@dataclass(frozen=True)
class RunOptions(Job, Backup, _ToCommand):
    """The options of run.

    command: a program and its arguments. since: file with a token, which need not exist; token: file for the token of
    this backup. tls: a folder of certificates. environment: of the command; stdout: a descriptor, None for ours.
    """

    since: Optional[str] = None
    token: Optional[str] = None
    tls: Optional[str] = None
    max_duration: Optional[float] = None
    environment: dict[str, str] = field(default_factory=dict)
    stdout: Optional[int] = None


@dataclass(frozen=True)
class _ToClients:
    domain: str
    listen: str
    token_file: str


@dataclass(frozen=True)
class ExposeOptions(Job, Backup, _ToClients):
    """The options of expose.

    listen: HOST:PORT, or unix:PATH. token_file: file with the token that clients have to send. since: file with the
    token of the previous backup, which need not exist; token_out: file for the new one. tls: a folder of certificates,
    for HTTP; client_ca: file with the certificates that verify clients. ttl: time in which a client has to confirm that
    it has the backup. nbd_tls: the option tls of pull.
    """

    since: Optional[str] = None
    token_out: Optional[str] = None
    tls: Optional[str] = None
    client_ca: Optional[str] = None
    ttl: float = 7200.0
    nbd_tls: Optional[str] = None
