"""What a restored disk is written to, of any kind.

A target is the other end of a copy from a source or an image, with the verbs `write`, `zero`, `flush` (and `read` and
`allocated`, to compare before writing), and three facts: `size` in bytes, `blank` (it reads as zero everywhere) and
`sequential` (it takes ascending writes only). One call of `write` has to contain everything that is written to a block
of 1 MiB. Owns: that interface. Must not know: what implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..core.extents import Buffer, Part, Range


class Target(Protocol):
    size: int
    blank: bool
    sequential: bool

    def write(self, parts: Sequence[Part]) -> int: ...

    def flush(self) -> None: ...


class Rewritable(Target, Protocol):
    """A target that may have content already."""

    def zero(self, offset: int, length: int) -> int: ...

    def read(self, offset: int, length: int) -> Buffer: ...

    def allocated(self, offset: int, length: int) -> list[Range]: ...
