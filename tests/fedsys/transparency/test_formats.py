"""Signed notes, checkpoints, cosignatures and proofs, against the examples that C2SP publishes."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedsys.transparency import (
    Checkpoint,
    LogProof,
    MerkleTree,
    NoteError,
    SignedNote,
    VerifierKey,
    cosign,
    cosignatures_of,
    leaf_hash,
)
from fedsys.transparency.note import COSIGNATURE_V1, ED25519, MAX_SIGNATURES, sign_note

# The example of https://c2sp.org/signed-note, section "Verifier keys".
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE = (
    "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONnc"
    "AlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
# The example of https://c2sp.org/tlog-cosignature; neither key is published.
COSIGNED = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q"
    "1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2o"
    "yin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
).encode()

SECRET = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = SECRET.public_key().public_bytes_raw()
LOG = VerifierKey(name="log.example/1", algorithm=ED25519, public=PUBLIC)
WITNESS = VerifierKey(name="witness.example/w1", algorithm=COSIGNATURE_V1, public=PUBLIC)
TEXT = Checkpoint(origin="log.example/1", size=3, root=bytes(32)).text


def test_the_published_note_verifies_under_the_published_key() -> None:
    key, note = VerifierKey.parse(EXAMPLE_KEY), SignedNote.parse(EXAMPLE)
    assert str(key) == EXAMPLE_KEY
    assert note.encode() == EXAMPLE
    assert note.text == "This is an example message.\n"
    assert note.is_signed_by(key)
    with pytest.raises(NoteError, match=r"example\.com/foo does not verify"):
        SignedNote.parse(EXAMPLE.replace(b"This", b"That")).is_signed_by(key)


def test_the_published_cosigned_checkpoint_reads_back() -> None:
    note = SignedNote.parse(COSIGNED)
    assert note.encode() == COSIGNED
    checkpoint = Checkpoint.parse(note.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == note.text
    witnessed = note.signatures[1]
    # The specification's signed message says "time 1679315147".
    assert int.from_bytes(witnessed.value[:8], "big") == 1679315147
    assert len(witnessed.value) == 8 + 64


def test_a_cosignature_signs_what_the_specification_says() -> None:
    line = cosign(TEXT, name=WITNESS.name, key=SECRET, timestamp=1679315147)
    message = b"cosignature/v1\ntime 1679315147\n" + TEXT.encode()
    SECRET.public_key().verify(line.value[8:], message)
    assert str(line).startswith("— witness.example/w1 ")
    (found,) = cosignatures_of(SignedNote(text=TEXT, signatures=(line,)), [WITNESS])
    assert (found.timestamp, found.witness) == (1679315147, WITNESS)


def test_only_known_keys_count_and_theirs_must_hold() -> None:
    line = cosign(TEXT, name=WITNESS.name, key=SECRET, timestamp=7)
    stranger = cosign(TEXT, name=WITNESS.name, key=Ed25519PrivateKey.generate(), timestamp=7)
    note = SignedNote(text=TEXT, signatures=(stranger, line))
    assert [each.line for each in cosignatures_of(note, [WITNESS])] == [line]
    assert cosignatures_of(SignedNote(text=TEXT, signatures=(stranger,)), [WITNESS]) == []
    for value in (line.value[:-1] + b"\x00", line.value[:-1], b"\x00" * 8 + line.value[8:]):
        forged = type(line)(name=line.name, id=line.id, value=value)
        with pytest.raises(NoteError, match="does not verify"):
            cosignatures_of(SignedNote(text=TEXT, signatures=(line, forged)), [WITNESS])


def test_a_note_signature_is_no_cosignature_of_the_same_key() -> None:
    signed = SignedNote(text=TEXT, signatures=(sign_note(TEXT, name=LOG.name, key=SECRET),))
    assert signed.is_signed_by(LOG)
    same_name = VerifierKey(name=LOG.name, algorithm=COSIGNATURE_V1, public=PUBLIC)
    assert cosignatures_of(signed, [same_name]) == []  # its id is another one
    with pytest.raises(NoteError, match="a log's, not a witness's"):
        cosignatures_of(signed, [LOG])
    with pytest.raises(NoteError, match="cosigns"):
        signed.is_signed_by(WITNESS)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"", "not a text, an empty line"),
        (b"text\n", "not a text, an empty line"),
        (b"text\n\n", "not a text, an empty line"),
        (b"text\n\n\xe2\x80\x94 name AAAAAAA=", "not a text, an empty line"),
        (b"text\n\nname AAAAAAA=\n", "signature line"),
        (b"text\n\n\xe2\x80\x94 name AAAA\n", "no bytes after"),
        (b"text\n\n\xe2\x80\x94 name AAAAA\n", "not base64"),
        (b"text\n\n\xe2\x80\x94 na+me AAAAAAA=\n", "not a key name"),
        (b"text\n\n\xe2\x80\x94 na\xc2\xa0me AAAAAAA=\n", "not a key name"),
        (b"text\n\n\xe2\x80\x94  AAAAAAA=\n", "not a key name"),
        (b"te\txt\n\n\xe2\x80\x94 name AAAAAAA=\n", "control"),
        (b"te\xffxt\n\n\xe2\x80\x94 name AAAAAAA=\n", "UTF-8"),
        (b"text\n\n" + b"\xe2\x80\x94 name AAAAAAA=\n" * (MAX_SIGNATURES + 1), "at most 64"),
        (b"x" * (1 << 18), "bytes; at most"),
    ],
)
def test_malformed_notes_are_refused(bad: bytes, why: str) -> None:
    with pytest.raises(NoteError, match=why):
        SignedNote.parse(bad)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "three lines"),
        ("origin\n1\n", "three lines"),
        ("\n1\nAAAA\n", "three lines"),
        (TEXT + "\n", "three lines"),
        (TEXT[:-1], "three lines"),
        (TEXT.replace("\n3\n", "\n03\n"), "leading zeros"),
        (TEXT.replace("\n3\n", "\n-3\n"), "leading zeros"),
        (TEXT.replace("\n3\n", "\n٣\n"), "leading zeros"),
        (TEXT.replace("\n3\n", f"\n{1 << 63}\n"), "below 2"),
        (TEXT.replace("AAA=", "AAB="), "not canonical base64"),
        (TEXT.replace("AAAA", "", 1), "29 bytes"),
    ],
)
def test_malformed_checkpoints_are_refused(text: str, why: str) -> None:
    with pytest.raises(NoteError, match=why):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name", "expected name"),
        (EXAMPLE_KEY.replace("530d903a", "530d903b"), "another key's"),
        (EXAMPLE_KEY.replace("foo", "bar"), "another key's"),
        ("name+00000000+" + base64.b64encode(b"\x02" + bytes(32)).decode(), "signature type 2"),
        ("name+00000000+" + base64.b64encode(b"\x01" + bytes(31)).decode(), "31 bytes"),
        ("na me+00000000+" + base64.b64encode(b"\x01" + bytes(32)).decode(), "not a key name"),
    ],
)
def test_malformed_keys_are_refused(text: str, why: str) -> None:
    with pytest.raises(NoteError, match=why):
        VerifierKey.parse(text)


def proof_of(index: int, leaves: list[bytes]) -> LogProof:
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    text = Checkpoint(origin="log.example/1", size=len(tree), root=tree.root()).text
    note = SignedNote(text=text, signatures=(sign_note(text, name=LOG.name, key=SECRET),))
    path = tree.inclusion_proof(index, len(tree))
    return LogProof(index=index, path=tuple(path), note=note)


def test_a_proof_travels_as_text() -> None:
    proof = proof_of(2, [b"a", b"b", b"c", b"d", b"e"])
    read = LogProof.parse(proof.encode())
    assert read == proof
    assert read.require(leaf_hash(b"c")).size == 5
    with pytest.raises(NoteError, match="leaf 2 is not proved"):
        read.require(leaf_hash(b"b"))
    lines = proof.encode().split(b"\n")
    extra = b"\n".join([lines[0], b"extra AAAA", *lines[1:]])
    assert LogProof.parse(extra) == proof


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"@v1", b"@v2", "does not begin"),
        (b"index 2\n", b"", "no index line"),
        (b"index 2\n", b"index 02\n", "leading zeros"),
        (b"index 2\n", b"extra !\nindex 2\n", "not base64"),
        (b"index 2\n", b"index 2\nAAAA\n", "other than 32 bytes"),
        (b"index 2\n", b"index 2\n" + b"AAAA\n" * 64, "no tree needs more"),
        (b"index 2\n", b"index 2\n\xff\n", "not ASCII"),
    ],
)
def test_malformed_proofs_are_refused(old: bytes, new: bytes, why: str) -> None:
    with pytest.raises(NoteError, match=why):
        LogProof.parse(proof_of(2, [b"a", b"b", b"c"]).encode().replace(old, new, 1))


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_do_more_than_raise_note_errors(raw: bytes) -> None:
    for read in (SignedNote.parse, LogProof.parse):
        for content in (raw, EXAMPLE + raw, COSIGNED[:40] + raw + COSIGNED[40:]):
            try:
                note = read(content)
            except NoteError:
                continue
            assert read(note.encode()).encode() == note.encode()
    text = raw.decode("utf-8", "replace")
    for parse in (Checkpoint.parse, VerifierKey.parse):
        try:
            parse(text)
        except NoteError:
            continue
