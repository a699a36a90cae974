"""Stage 1 at the server: what each dealer uploaded, sorted by who is to receive it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from secure_agg import checks, keys
from secure_agg.messages import COMMITMENTS_SIZE, DEALT_ROW, Kind
from secure_agg.store import present
from secure_agg.transcript import View

__all__ = ["HEAD", "Delivery", "check_upload"]

HEAD = 96
"""Bytes before the commitments in a SHARES message: H(b) and a signature."""


def check_upload(view: View, sender: int, body: bytes) -> None:
    """Refuse a SHARES message without a share for each neighbour.

    Its signature is evidence: verified before the dealer's shares are ever combined.

    Raises:
        MessageError: Naming the sizes.
    """
    count = len(view.graph.neighbours[view.cohort.index[sender]])
    size = HEAD + count * (COMMITMENTS_SIZE + keys.SEALED_SIZE)
    checks.size(len(body), size, size, Kind.SHARES.name)


class Delivery:
    """All dealers' uploads of a round.

    Args:
        view: The cohort and its graph.
        uploads: Bodies of SHARES messages by dealer, ids increasing; each as `check_upload` wants.

    Attributes:
        rows: What everybody is shown of every dealer: id, H(b), hash of commitments, signature.
        count: Dealers.
    """

    def __init__(self, view: View, uploads: Mapping[int, bytes]) -> None:
        self._view = view
        self.count = len(uploads)
        # By index, None for those that dealt nothing: body, its commitments, start of its shares.
        self._dealings: list[tuple[bytes, bytes, int] | None] = [None] * len(view.cohort.ids)
        rows: list[bytes] = []
        for member, body in uploads.items():
            index = view.cohort.index[member]
            count = len(view.graph.neighbours[index])
            start = HEAD + count * COMMITMENTS_SIZE
            commitments = body[HEAD:start]
            hashed = hashlib.sha256(commitments).digest()
            rows.append(DEALT_ROW.pack(member, body[:32], hashed, body[32:HEAD]))
            self._dealings[index] = body, count.to_bytes(2, "little") + commitments, start
        self.rows = b"".join(rows)

    def to(self, member: int) -> list[bytes]:
        """What one member receives: of each neighbour that dealt, its sealed share and commitments,
        as parts of a message."""
        graph, own = self._view.graph, self._view.cohort.index[member]
        parts: list[bytes] = []
        for index, place in zip(graph.neighbours[own], graph.places[own], strict=True):
            dealing = self._dealings[index]
            if dealing is not None:
                body, commitments, start = dealing
                at = start + place * keys.SEALED_SIZE
                parts += (body[at : at + keys.SEALED_SIZE], commitments)
        return parts

    def evidence(self, member: int) -> bytes:
        """What is kept of a dealer's upload once its sealed shares are passed on."""
        body, _, start = present(self._dealings[self._view.cohort.index[member]])
        return body[:start]
