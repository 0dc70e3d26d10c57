"""A backup from the token in one file to a new token in a file: what `run` and `expose` have in common.

Owns: which file the new token may be written to, which of a verb's options the backup receives, and the order of the
commit. Must not know: who reads the blocks, and how.

The new token is first written to its file, durably; then the backup is committed. So a file that cannot be written is
an error while nothing has moved. A run that is killed between the two leaves a token whose checkpoint the next run
removes, as after every run without a commit: the next backup is full. In the reverse order, the checkpoint of the old
token could be gone: the next backup would be full, too. In neither case does a file contain the token of a backup that
nobody has.
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
    """The tokens of a backup.

    since: the token that the backup starts from, None for a full backup. path: file for the new token, None: none is
    written; replaced: the token that this file contains now, None if the file is new.
    """

    since: Optional[Token]
    path: Optional[str]
    replaced: Optional[Token]


def between(since: Optional[Token], since_path: Optional[str], path: Optional[str]) -> Between:
    """Return the Between of a backup, having checked the file for the new token while there is nothing to lose.

    since: the token in since_path. OutputExists if `path` contains anything else than that token, OutputError if it
    cannot be written.
    """
    replaced = None
    if path is not None:
        if since is not None and since_path is not None and token_file.is_same(since_path, path):
            replaced = since
        else:
            token_file.require_new(path)
        with token_file.drafted(path):
            pass  # the file can be written; a draft that stayed open would remain if we are killed
    return Between(since, path, replaced)


def wanted(options: Any, tokens: Between, **others: Any) -> Backup:
    """Return the options of the backup: a verb's options of the same names, except for those in `others`."""
    given = {field.name: getattr(options, field.name) for field in fields(Backup) if hasattr(options, field.name)}
    return Backup(**{**given, "since": tokens.since, **others})


def commit(job: Job, tokens: Between) -> list[str]:
    """Commit a finished job; return what went wrong after the commit: that is no error, as the base has moved."""
    with token_file.drafted(tokens.path) as draft, draft.committing(job.token, tokens.replaced):
        try:
            job.commit()
        except errors.NbdpullError as error:
            if not job.committed:
                raise
            return [f"the backup is committed, and then: {error}"]
    return []
