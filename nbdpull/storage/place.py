"""Where a store is, as the user names it: which Store a word means, and what can be asked of a place before it is one.

Owns: what a URL is, and that a word means the same to every process of this machine. Must not know: what makes a place
a store (repository/marker.py).
"""

from __future__ import annotations

import os

from . import folders
from .base import Store
from .directory import DirectoryStore


def opened(word: str) -> Store:
    """The Store at a place; nothing is looked at yet."""
    return DirectoryStore(word)


def whole(word: str) -> str:
    """The same word, for a process that works in another folder."""
    return os.path.abspath(word)


def is_there(word: str) -> bool:
    return folders.is_there(word)


def is_empty(word: str) -> bool:
    """Whether nothing is in it, or it is not there; OutputError where that cannot be told."""
    return not folders.is_there(word) or not folders.entries(word)


def are_apart(word: str, other: str) -> bool:
    """Whether neither of two places is the other, or in it. They need not be there."""
    return folders.are_apart(word, other)
