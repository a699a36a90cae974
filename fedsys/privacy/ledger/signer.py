"""The coordinator's signing key, kept outside every run's folder and readable by its owner only."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedsys.durable import flush_names, make_folder
from fedsys.errors import LedgerError
from fedsys.privacy.ledger.lines import signed_message
from fedsys.privacy.randomness import Entropy
from fedsys.transparency import Checkpoint, MerkleTree, SignedNote
from fedsys.transparency.note import sign_note
from fedsys.transparency.origin import origin_of

__all__ = ["KEY_NAME", "Signer", "fedsys_home", "load_public_key"]

KEY_NAME = "coordinator.ed25519"
_KEY_BYTES = 32


def fedsys_home() -> Path:
    """``$FEDSYS_HOME``, or ``~/.fedsys``."""
    return Path(os.environ.get("FEDSYS_HOME") or Path.home() / ".fedsys")


class Signer:
    """Signs ledger lines with Ed25519.

    >>> signer = Signer.generate(entropy=lambda n: bytes(n))
    >>> signer.public_hex[:8], len(signer.sign("00" * 32))
    ('3b6a27bc', 128)
    """

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"Signer(public={self.public_hex})"

    def __reduce__(self) -> str:
        raise TypeError("a signer holds a secret and is never pickled")

    @classmethod
    def generate(cls, *, entropy: Entropy = os.urandom) -> Signer:
        """A signer under a fresh key that is stored nowhere."""
        return cls(Ed25519PrivateKey.from_private_bytes(entropy(_KEY_BYTES)))

    @classmethod
    def load_or_create(cls, home: Path | None = None, *, entropy: Entropy = os.urandom) -> Signer:
        """The coordinator's key under ``home`` (default: ``$FEDSYS_HOME``), created on first use.

        Raises:
            LedgerError: the key file cannot be used, is not a key, or is readable by others.
        """
        path = (home or fedsys_home()) / KEY_NAME
        try:
            if not path.exists():
                _create(path, entropy(_KEY_BYTES))
            # Whichever process created it: a key that signed a ledger must survive a power loss.
            flush_names(path.parent)
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise LedgerError(
                    f"the signing key {path} has mode {mode:04o}: others can read it; run "
                    f"chmod 600 {path}"
                )
            raw = path.read_bytes()
        except OSError as error:
            raise LedgerError(
                f"cannot use the signing key {path}: {error.strerror}; set FEDSYS_HOME to a folder "
                "that you can write to"
            ) from None
        if len(raw) != _KEY_BYTES:
            raise LedgerError(
                f"the signing key {path} has {len(raw)} bytes instead of {_KEY_BYTES}: move it away"
            )
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The public half."""
        return self._key.public_key()

    @property
    def public_hex(self) -> str:
        """The public half as 64 hexadecimal digits, which an auditor pins."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, digest: str) -> str:
        """Signature over a line's hash, as hex."""
        return self._key.sign(signed_message(digest)).hex()

    def sign_checkpoint(self, tree: MerkleTree, size: int, *, job: bytes) -> SignedNote:
        """The head of a job's ledger as a signed note.

        The bytes signed for a line start with text and a zero byte, and a note has no control
        characters, so neither signature can pass for the other.

        Args:
            tree: the ledger's Merkle tree.
            size: the number of lines that the checkpoint covers.
            job: 32 bytes, the header's ``job``.
        """
        origin = origin_of(signer=self.public_hex, job=job.hex())
        text = Checkpoint(origin=origin, size=size, root=tree.root(size)).text
        return SignedNote(text=text, signatures=(sign_note(text, name=origin, key=self._key),))


def _create(path: Path, raw: bytes) -> None:
    """Writes a key so that no other user can read it and no other process sees it incomplete.

    The folder's own name is made durable first, so that a power loss cannot remove it with the key.
    """
    make_folder(path.parent, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        try:
            os.write(descriptor, raw)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process was first, and its key is used
    finally:
        os.unlink(temporary)


def load_public_key(text: str) -> Ed25519PublicKey:
    """A public key from 64 hexadecimal digits, or from a file that contains them.

    Raises:
        LedgerError: the text is neither.
    """
    candidate = text.strip()
    if len(candidate) != 2 * _KEY_BYTES:
        path = Path(candidate)
        try:
            if path.is_file() and path.stat().st_size <= 4096:
                candidate = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            pass
    try:
        raw = bytes.fromhex(candidate)
        if len(raw) != _KEY_BYTES:
            raise ValueError
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise LedgerError(
            f"not a public key: {text[:80]!r}; give 64 hexadecimal digits or a file that holds them"
        ) from None
