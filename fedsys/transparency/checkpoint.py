"""Checkpoints: the text of a log's signed tree head (https://c2sp.org/tlog-checkpoint).

>>> Checkpoint.parse(
...     "example.com/behind-the-sofa\\n20852163\\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\\n"
... ).size
20852163
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from fedsys.transparency.merkle import HASH_BYTES
from fedsys.transparency.note import NoteError, decimal, decode_base64

__all__ = ["Checkpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A log's statement about itself.

    Attributes:
        origin: the log's name.
        size: number of leaves of its tree.
        root: the tree's root hash, 32 bytes.
        extensions: further lines, which no witness vouches for.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Reads a note's text.

        Raises:
            NoteError: it is not a checkpoint.
        """
        lines = text.removesuffix("\n").split("\n")
        if len(lines) < 3 or not text.endswith("\n") or not all(lines):
            raise NoteError("a checkpoint is at least three lines, none of them empty")
        root = decode_base64(lines[2], "a checkpoint's root hash")
        if len(root) != HASH_BYTES:
            raise NoteError(f"a checkpoint's root hash has {len(root)} bytes, not {HASH_BYTES}")
        return cls(
            origin=lines[0],
            size=decimal(lines[1], "a checkpoint's tree size"),
            root=root,
            extensions=tuple(lines[3:]),
        )

    @property
    def text(self) -> str:
        """The note's text."""
        root = base64.b64encode(self.root).decode("ascii")
        lines = (self.origin, str(self.size), root, *self.extensions)
        return "".join(f"{line}\n" for line in lines)
