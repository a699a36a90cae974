"""Commitments to what a round's coordinator draws, and their openings."""

from __future__ import annotations

__all__ = ["NONCE_BYTES"]

NONCE_BYTES = 16
"""What a member adds to a round's randomness, with its upload."""
