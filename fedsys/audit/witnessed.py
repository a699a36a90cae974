"""What witnesses' cosignatures say about the ledger (``cosigned.jsonl``), and what they contradict.

A witness follows a log that only grows, so its cosignature on a checkpoint of n lines vouches for
those n lines and their order: the coordinator cannot rewrite them, for anybody, unless that witness
helps. It says nothing about what the lines claim.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsys.audit.wording import claim, plain
from fedsys.errors import AuditInputError, LedgerError
from fedsys.privacy import LedgerView
from fedsys.privacy.ledger.cosigned import (
    COSIGNED,
    PROOF,
    CosignedHead,
    contradiction,
    read_cosigned,
    read_proof,
)
from fedsys.privacy.ledger.files import open_regular
from fedsys.records import Claim
from fedsys.transparency import (
    Checkpoint,
    NoteError,
    SignedNote,
    VerifierKey,
    cosignatures_of,
    verify_inclusion,
)
from fedsys.transparency.cosignature import require_witness
from fedsys.transparency.note import MAX_NOTE_BYTES

__all__ = ["Pins", "Witnessed", "load_checkpoint", "load_witnesses", "witnessed"]

_MOST_PINNED = 64
_KEY_FILE_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Pins:
    """What an auditor brings along.

    Attributes:
        witnesses: keys of the witnesses whose cosignatures count.
        checkpoints: (name, checkpoint) of this ledger, obtained elsewhere, such as from a witness.
        authority: public key (hex) of the authority that signs the roster; None if not known.
    """

    witnesses: tuple[VerifierKey, ...] = ()
    checkpoints: tuple[tuple[str, SignedNote], ...] = ()
    authority: str | None = None


def load_witnesses(texts: Sequence[str]) -> tuple[VerifierKey, ...]:
    """Verifier keys, given as such or as files that hold one per line.

    Raises:
        AuditInputError: one is neither, or is not a witness's key.
    """
    found: dict[str, VerifierKey] = {}
    for text in texts:
        lines = [text]
        if "+" not in text:
            try:
                with open_regular(Path(text), _KEY_FILE_BYTES) as file:
                    lines = file.read().decode("utf-8").split()
            except (LedgerError, UnicodeDecodeError):
                lines = [text]
        for line in lines:
            try:
                key = require_witness(VerifierKey.parse(line))
            except NoteError as error:
                raise AuditInputError(
                    f"--witness {plain(text, 100)}: {error}; give what `fedsys witness init` "
                    "printed, or a file that holds it"
                ) from None
            found[str(key)] = key
    if len(found) > _MOST_PINNED or len({key.name for key in found.values()}) < len(found):
        raise AuditInputError(
            f"--witness: {len(found)} keys; at most {_MOST_PINNED}, of different names"
        )
    return tuple(found.values())


def load_checkpoint(path: Path) -> SignedNote:
    """A checkpoint in a file.

    Raises:
        AuditInputError: it holds no checkpoint.
    """
    try:
        with open_regular(path, MAX_NOTE_BYTES) as file:
            note = SignedNote.parse(file.read(MAX_NOTE_BYTES + 1))
        Checkpoint.parse(note.text)
    except (LedgerError, NoteError) as error:
        raise AuditInputError(f"--checkpoint {plain(path, 100)}: {error}") from None
    return note


@dataclass(frozen=True, kw_only=True, slots=True)
class Witnessed:
    """What witnesses vouch for.

    Attributes:
        claims: in order.
        sizes: how many of the ledger's lines each pinned witness vouches for, by name.
    """

    claims: tuple[Claim, ...]
    sizes: dict[str, int]

    @property
    def covers(self) -> str | None:
        """What no longer rests on the coordinator's word alone; None if nothing."""
        if not self.sizes or any(each.holds is False for each in self.claims):
            return None
        said = [f"{plain(name, 60)} for {size} lines" for name, size in sorted(self.sizes.items())]
        return f"witnessed by {', '.join(said)}"


def witnessed(run: Path, view: LedgerView, pins: Pins) -> Witnessed:
    """Reads and checks what a folder has from witnesses. Never raises for its content.

    Args:
        run: the folder.
        view: its verified ledger.
        pins: what the auditor brings along.
    """
    try:
        origin = view.origin
    except LedgerError as error:
        return _without_log(run, pins, str(error))
    heads, notes, problem = _heads(run / COSIGNED, view, origin)
    claims = list(_proof_claims(run / PROOF, view, origin))
    claims.extend(_heads_claims(run / COSIGNED, heads, problem, pins.witnesses))
    for name, note in pins.checkpoints:
        claims.append(_checkpoint_claim(name, note, view, origin, pins))
    notes.extend(note for _, note in pins.checkpoints)
    sizes: dict[str, int] = {}
    for key in pins.witnesses:
        said, size = _witness_claim(key, notes, view, origin)
        claims.append(said)
        if size:
            sizes[key.name] = size
    return Witnessed(claims=tuple(claims), sizes=sizes)


def _without_log(run: Path, pins: Pins, problem: str) -> Witnessed:
    """A ledger that is not a log fails the claims about it as a log, and nothing else."""
    asked = pins.witnesses or pins.checkpoints
    there = [name for name in (COSIGNED, PROOF) if _exists(run / name)]
    if not asked and not there:
        return Witnessed(claims=(), sizes={})
    said = claim(
        "Cosigned heads",
        False,
        claimed=", ".join(there) or "witnesses vouch for the ledger",
        rederived=problem,
        by="the header",
    )
    return Witnessed(claims=(said,), sizes={})


def _heads(
    path: Path, view: LedgerView, origin: str
) -> tuple[list[CosignedHead], list[SignedNote], str | None]:
    """The valid lines, the notes of all, and what is wrong with the first invalid one."""
    if not _exists(path):
        return [], [], None
    try:
        lines = read_cosigned(path)
    except LedgerError as error:
        return [], [], str(error)
    good, problem = [], None
    for head in lines:
        wrong = _wrong(head, view, origin)
        if wrong is None:
            good.append(head)
        else:
            problem = problem or f"{plain(head.witness.name, 80)} cosigned another ledger: {wrong}"
    return good, [head.note for head in lines], problem


def _wrong(head: CosignedHead, view: LedgerView, origin: str) -> str | None:
    try:
        if head.cosignature is None:
            return "it has no cosignature from that witness"
    except NoteError as error:
        return str(error)
    return contradiction(head.note, view.tree, origin)


def _heads_claims(
    path: Path, heads: list[CosignedHead], problem: str | None, pinned: tuple[VerifierKey, ...]
) -> Iterator[Claim]:
    """The file as a whole: it must not contradict the ledger, pinned witnesses or not."""
    if not _exists(path):
        return
    known = [head for head in heads if head.witness in pinned]
    names = ", ".join(
        f"{plain(h.witness.name, 60)} {h.checkpoint.size} lines" for h in (known or heads)[:8]
    )
    words = problem or names or "nobody cosigned"
    if problem is None and len(known) < len(heads):
        whose = f"{len(heads) - len(known)} more by keys that are" if known else "keys"
        words += f"; {whose} not pinned: anybody can make such witnesses (give --witness KEY)"
    yield claim(
        "Cosigned heads",
        False if problem is not None else True if known else None,
        claimed="what witnesses cosigned is this ledger",
        rederived=words,
        by="Merkle roots of the ledger's lines, Ed25519 by the log and each witness",
        rests_on="the witnesses' keys being the folder's own word, unless pinned",
    )


def _witness_claim(
    key: VerifierKey, notes: list[SignedNote], view: LedgerView, origin: str
) -> tuple[Claim, int]:
    """What one pinned witness vouches for, and for how many lines."""
    size, when, problem = 0, 0, None
    for note in notes:
        try:
            found = cosignatures_of(note, [key])
            checkpoint = Checkpoint.parse(note.text)
        except NoteError as error:
            problem = problem or str(error)
            continue
        if not found:
            continue
        wrong = contradiction(note, view.tree, origin)
        if wrong is not None:
            problem = problem or f"it cosigned another ledger: {wrong}"
        elif checkpoint.size > size:
            size, when = checkpoint.size, found[0].timestamp
    words = problem or "it vouches for nothing here"
    if size and problem is None:
        reserved = [each.round for each in view.rounds if each.reserved_at < size]
        rounds = f"reservations up to round {reserved[-1]}" if reserved else "no round yet"
        words = f"the first {size} of {view.lines} lines ({rounds}), {_time(when)}"
    whole: bool | None = True if size == view.lines else None
    return (
        claim(
            f"Witness {plain(key.name, 80)}",
            False if problem is not None or not size else whole,
            claimed="it vouches for the whole ledger",
            rederived=words,
            by="the key given with --witness",
            rests_on="that witness having seen these lines grow, and no others in their place",
        ),
        0 if problem is not None else size,
    )


def _checkpoint_claim(
    name: str, note: SignedNote, view: LedgerView, origin: str, pins: Pins
) -> Claim:
    """A checkpoint that the auditor obtained elsewhere against the ledger in the folder."""
    wrong = contradiction(note, view.tree, origin)
    try:
        who = [each.witness.name for each in cosignatures_of(note, pins.witnesses)]
    except NoteError as error:
        who, wrong = [], wrong or str(error)
    by = f"cosigned by {', '.join(plain(each, 60) for each in who)}" if who else "signed by the log"
    return claim(
        f"Checkpoint {plain(name, 80)}",
        wrong is None,
        claimed=f"{by}: {Checkpoint.parse(note.text).size} lines",
        rederived=wrong or f"the first lines of the {view.lines} here",
        by="Merkle roots of the ledger's lines",
        rests_on="where that checkpoint came from",
    )


def _proof_claims(path: Path, view: LedgerView, origin: str) -> Iterator[Claim]:
    """``ledger.tlog-proof``: the signed head, and the last line's place under it."""
    if not _exists(path):
        return
    size = 0
    try:
        proof = read_proof(path)
        size = Checkpoint.parse(proof.note.text).size
        wrong = contradiction(proof.note, view.tree, origin)
        if wrong is None:
            leaf = view.tree.leaf(size - 1) if size else b""
            root = view.tree.root(size)
            if proof.index != size - 1 or not verify_inclusion(
                leaf, proof.index, size, proof.path, root
            ):
                wrong = "its path does not lead from the last line to the root"
    except (LedgerError, NoteError) as error:
        wrong = str(error)
    yield claim(
        "Signed head",
        False if wrong is not None else True if size == view.lines else None,
        claimed=f"{PROOF} proves the ledger's last line",
        rederived=wrong or f"line {size} of {view.lines}",
        by="its inclusion proof, and the log's signature",
        rests_on="the signing key staying with the coordinator",
    )


def _time(timestamp: int) -> str:
    try:
        return f"{dt.datetime.fromtimestamp(timestamp, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"at {timestamp}"


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
