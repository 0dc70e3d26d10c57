"""A backup from a token in a file to a token in a file: what `run` and `expose` do alike.

Owns: which file the new token may go to, what of a verb's options the backup is asked for, and the order of the commit.
Must not know: who takes the blocks, and how.

The new token is in its file first, durably, then comes the commit: so a file that cannot be written is an error while
nothing has moved. Who is killed between the two leaves a token whose checkpoint the next run removes, as it does after
every run without a commit: the next backup is full. The other way round the checkpoint of the old token could be gone:
full, too. Neither is ever the token of blocks that nobody has.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Optional

from ..api.job import Job
from ..api.options import Options as Backup
from ..core import errors
from ..pulling import token_file
from ..pulling.token import Token


@dataclass(frozen=True)
class Between:
    """since: the token that the backup starts from, None: a full one. path: file of the new one, None: none; replaced:
    the token that this file has."""

    since: Optional[Token]
    path: Optional[str]
    replaced: Optional[Token]


def between(since: Optional[Token], since_path: Optional[str], path: Optional[str]) -> Between:
    """since: the token that is in since_path. Before there is anything to lose: OutputExists where `path` has anything
    else, OutputError where it cannot be written."""
    replaced = None
    if path is not None:
        if since is not None and since_path is not None and token_file.is_same(since_path, path):
            replaced = since
        else:
            token_file.require_new(path)
        with token_file.drafted(path):
            pass  # it can be written; kept open, it would be left where we are killed
    return Between(since, path, replaced)


def wanted(options: Any, tokens: Between, **others: Any) -> Backup:
    """The backup that a verb's options ask for: the fields of one name mean one thing, but for `others`."""
    given = {field.name: getattr(options, field.name) for field in fields(Backup) if hasattr(options, field.name)}
    return Backup(**{**given, "since": tokens.since, **others})


def commit(job: Job, tokens: Between) -> list[str]:
    """Commit a finished job; return what went wrong after that, which is no reason to say that nothing moved."""
    with token_file.drafted(tokens.path) as draft, draft.committing(job.token, tokens.replaced):
        try:
            job.commit()
        except errors.NbdpullError as error:
            if not job.committed:
                raise
            return [f"the backup is committed, and then: {error}"]
    return []
