"""A witness cosigns growth and nothing else, whatever it is sent, and keeps what it cosigned."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedsys.errors import ConfigError
from fedsys.transparency import Checkpoint, NoteError, SignedNote, cosignatures_of
from fedsys.transparency.note import sign_note
from fedsys.transparency.origin import log_key
from fedsys.transparency.submission import Submission, parse_signatures
from fedsys.witness.cosigning import Reply, Witness
from fedsys.witness.folder import WitnessFolder, origin_hash
from tests.fedsys.witness.logs import Log

CLOCK = 1_700_000_000


def witness_at(path: Path, log: Log, *, name: str = "witness.example/w") -> Witness:
    folder = WitnessFolder.create(path, name=name, logs=[log.signer])
    return Witness(folder, clock=lambda: CLOCK)


@pytest.fixture
def log() -> Log:
    return Log().grow(4)


@pytest.fixture
def witness(tmp_path: Path, log: Log) -> Witness:
    return witness_at(tmp_path / "w", log)


def send(witness: Witness, submission: Submission) -> Reply:
    return witness.add_checkpoint(submission.encode())


def cosigned(witness: Witness, submission: Submission) -> None:
    """Whether the answer is this witness's word on that checkpoint."""
    reply = send(witness, submission)
    assert reply.status == 200, reply
    note = submission.note.with_signatures(parse_signatures(reply.body))
    (found,) = cosignatures_of(note, [witness.vkey])
    assert found.timestamp == CLOCK


def test_growth_is_cosigned_step_by_step(witness: Witness, log: Log) -> None:
    cosigned(witness, log.submission(0))
    cosigned(witness, log.submission(4))  # the same once more
    for old in range(4, 40, 3):
        log.grow(3)
        cosigned(witness, log.submission(old))
    stored = witness.checkpoint(origin_hash(log.origin))
    assert stored.status == 200
    note = SignedNote.parse(stored.body)
    assert Checkpoint.parse(note.text).size == len(log.tree)
    assert note.is_signed_by(log_key(log.origin))
    assert cosignatures_of(note, [witness.vkey])


def test_the_wrong_old_size_is_told_the_right_one(witness: Witness, log: Log) -> None:
    cosigned(witness, log.submission(0))
    log.grow(4)
    for old in (0, 3, 5):
        reply = send(witness, log.submission(old))
        assert (reply.status, reply.body, reply.content_type) == (409, b"4\n", "text/x.tlog.size")
    # A rollback: the log is signed at a size below what was cosigned.
    reply = send(witness, log.submission(3, 3))
    assert (reply.status, reply.body) == (409, b"4\n")
    assert send(witness, dataclasses.replace(log.submission(4), old=9)).status == 400


def test_a_fork_is_refused(witness: Witness, log: Log) -> None:
    cosigned(witness, log.submission(0))
    fork = Log([b"0", b"another", b"2", b"3", b"4"])
    reply = send(witness, fork.submission(4))
    assert reply.status == 422
    assert b"size 4" in reply.body
    same_size = Submission(old=4, proof=(), note=fork.note(4))
    assert send(witness, same_size).status == 422
    # Honest roots with a proof that does not fit.
    log.grow(1)
    good = log.submission(4)
    for proof in ((), good.proof[1:], (*good.proof, bytes(32)), (bytes(32), *good.proof[1:])):
        assert send(witness, dataclasses.replace(good, proof=proof)).status == 422
    cosigned(witness, good)


def test_the_first_checkpoint_takes_no_proof(witness: Witness, log: Log) -> None:
    first = log.submission(0)
    assert send(witness, dataclasses.replace(first, proof=(bytes(32),))).status == 422
    empty = Submission(old=0, proof=(), note=log.note(0, root=bytes(32)))
    assert send(witness, empty).status == 422
    cosigned(witness, log.submission(0, 0))
    cosigned(witness, first)


def test_only_the_logs_own_key_counts(witness: Witness, log: Log, tmp_path: Path) -> None:
    good = log.submission(0)
    stranger = Log(job=1, key=b"x" * 32).grow(4)
    assert send(witness, stranger.submission(0)).status == 404
    text = good.note.text
    mallory = sign_note(text, name=log.origin, key=Ed25519PrivateKey.generate())
    by_mallory = dataclasses.replace(good, note=SignedNote(text=text, signatures=(mallory,)))
    assert send(witness, by_mallory).status == 403
    line = good.note.signatures[0]
    forged = dataclasses.replace(line, value=bytes(64))
    spoilt = dataclasses.replace(good, note=good.note.with_signatures([forged]))
    assert send(witness, spoilt).status == 403
    assert witness.checkpoint(origin_hash(log.origin)).status == 404
    # Unknown signatures besides the log's are ignored, and not kept.
    cosigned(witness, dataclasses.replace(good, note=good.note.with_signatures([mallory])))
    stored = SignedNote.parse(witness.checkpoint(origin_hash(log.origin)).body)
    assert [each.id for each in stored.signatures] == [line.id, witness.vkey.id]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old\n\n",
        b"old 0\n",
        b"old -1\n\norigin\n",
        b"old 00\n\n%s",
        b"new 0\n\n%s",
        b"old 0\nAAAA\n\n%s",
        b"old 0\n" + b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n" * 64 + b"\n%s",
        b"old 0\n\n\xff%s",
        b"old 0\n\ntext\n\n\xe2\x80\x94 name AAAAAAA=\n",
    ],
)
def test_malformed_requests(witness: Witness, log: Log, body: bytes) -> None:
    sent = body.replace(b"%s", log.note().encode())
    assert witness.add_checkpoint(sent).status == 400


def test_a_long_text_is_refused(witness: Witness, log: Log) -> None:
    text = log.note().text + "x" * 4096 + "\n"
    note = SignedNote(text=text, signatures=(sign_note(text, name=log.origin, key=log.key),))
    assert send(witness, Submission(old=0, proof=(), note=note)).status == 400
    assert witness.add_checkpoint(b"x" * (1 << 18)).status == 400


def test_what_was_cosigned_survives_the_process(tmp_path: Path, log: Log) -> None:
    witness = witness_at(tmp_path / "w", log)
    cosigned(witness, log.submission(0))
    again = Witness(WitnessFolder.open(tmp_path / "w"), clock=lambda: CLOCK)
    assert again.vkey == witness.vkey
    assert send(again, Log([b"fork"]).submission(0)).body == b"4\n"
    log.grow(1)
    cosigned(again, log.submission(4))


def test_a_spoilt_state_is_no_fresh_start(tmp_path: Path, log: Log) -> None:
    witness = witness_at(tmp_path / "w", log)
    cosigned(witness, log.submission(0))
    (file,) = (tmp_path / "w" / "checkpoints").iterdir()
    content = file.read_bytes()
    other = Log(job=2).grow(1)
    for spoilt in (
        b"",
        content[:-20],
        log.note().encode(),  # without the witness's own cosignature
        content.replace(b"\n4\n", b"\n1\n"),
    ):
        file.write_bytes(spoilt)
        assert send(witness, log.submission(0)).status == 500
    cosigned(witness, other.submission(0))
    names = [origin_hash(other.origin), origin_hash(log.origin)]
    shutil.copy(tmp_path / "w" / "checkpoints" / names[0], file)  # another log's
    assert file.name == names[1]
    assert send(witness, log.submission(0)).status == 500


def test_a_rolled_back_witness_shows(tmp_path: Path) -> None:
    """Brought back from a backup it can be led to cosign two histories; its own two cosignatures
    and the other witness's state then prove what happened."""
    log = Log().grow(3)
    rolled, other = (witness_at(tmp_path / name, log, name=name) for name in ("a", "b"))
    cosigned(rolled, log.submission(0))
    shutil.copytree(tmp_path / "a", tmp_path / "backup")
    log.grow(4)
    before = log.submission(3)
    cosigned(rolled, before)
    cosigned(other, log.submission(0))
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(tmp_path / "backup", tmp_path / "a")
    fork = Log([b"0", b"1", b"2", b"rewritten", b"4", b"5", b"6"])
    after = fork.submission(3)
    cosigned(rolled, after)  # the same size, another root, the same witness's key
    assert Checkpoint.parse(before.note.text).root != Checkpoint.parse(after.note.text).root
    assert send(other, fork.submission(3)).body == b"7\n"
    assert send(other, Submission(old=7, proof=(), note=fork.note())).status == 422


def test_concurrent_requests_never_roll_back(tmp_path: Path) -> None:
    """The race that the specification describes: many at once, of all sizes."""
    log = Log().grow(1)
    witness = witness_at(tmp_path / "w", log)
    cosigned(witness, log.submission(0))
    log.grow(39)
    requests = [log.submission(1, size) for size in range(1, 41)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda each: send(witness, each), requests))
    won = [
        Checkpoint.parse(request.note.text).size
        for request, reply in zip(requests, replies, strict=True)
        if reply.status == 200
    ]
    assert sorted({reply.status for reply in replies}) == [200, 409]
    assert len([size for size in won if size > 1]) == 1
    stored = SignedNote.parse(witness.checkpoint(origin_hash(log.origin)).body)
    assert Checkpoint.parse(stored.text).size == max(won)


def test_only_so_many_logs_are_kept(tmp_path: Path) -> None:
    log = Log().grow(1)
    folder = WitnessFolder.create(tmp_path / "w", name="w", logs=[log.signer])
    folder.write_settings(folder.settings().model_copy(update={"most_logs": 2}))
    witness = Witness(folder)
    assert [send(witness, Log(job=job).grow(1).submission(0)).status for job in (1, 2, 3)] == [
        200,
        200,
        503,
    ]
    assert send(witness, Log(job=2).grow(1).submission(1)).status == 200
    assert send(Witness(folder), Log(job=3).grow(1).submission(0)).status == 503


def test_no_name_reaches_outside_the_folder(witness: Witness) -> None:
    for name in ("../witness.ed25519", "", "a" * 63, "A" * 64, "..", "a" * 64 + "/"):
        assert witness.checkpoint(name).status == 404


@given(raw=st.binary(max_size=200), place=st.integers(0, 400))
def test_no_request_breaks_it(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, place: int
) -> None:
    log = Log().grow(4)
    witness = witness_at(tmp_path_factory.mktemp("w") / "w", log)
    good = log.submission(0).encode()
    for body in (raw, good[:place] + raw + good[place:], good[:place] + raw):
        reply = witness.add_checkpoint(body)
        assert reply.status in (200, 400, 403, 404, 422)


# -- the exchange in the tests of litewitness (FiloSottile/litetlog, cmd/litewitness/testdata) ---

SIGSUM = "sigsum.org/v1/tree/4d6d8825a6bb689d459628312889dfbb0bcd41b5211d9e1ce768b0ff0309e562"
PUBLIC = "ffdc2d4d98e4124d3feaf788c0c2f9abfd796083d1f0495437f302ec79cf100f"
LINE = f"— {SIGSUM} UgIom"
ONE = f"""{SIGSUM}
1
KgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=

{LINE}7fPZTqpxWWhyjWduBvTvGVqsokMbqTArsQilegKoFBJQjUFAmQ0+YeSPM3wfUQMFSzVnnNuWRTYrajXpNUbIQY=
"""
THREE = f"""{SIGSUM}
3
RcCI1Nk56ZcSmIEfIn0SleqtV7uvrlXNccFx595Iwl0=

{LINE}2VbtIcdFbwFAy1n7s6IkAxIY6J/GQOTuZF2ORV39d75cbAj2aQYwyJre36kezNobZs4SUUdrcawfAB8WVrx6go=
"""
FIVE = f"""{SIGSUM}
5
QrtXrQZCCvpIgsSmOsah7HdICzMLLyDfxToMql9WTjY=

{LINE}w/EOJmWi0i1FQsOj+etB7F8IccFam/jgd6wzRns4QPVmyEZtdvl1U2KEmLOZ/ASRcWJi0tW90dJWAShei7sDww=
"""
PROOF3 = """KgEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
KgIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
BAD3 = PROOF3.replace(
    "KgIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "KgIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAA="
)
PROOF5 = """KgIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
KgMAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
wgiIFdZfYNv6WU1OllBKsWnLYIS/DBMqt8Uh/S4OukE=
KgQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""


def test_the_exchange_that_litewitness_publishes(tmp_path: Path) -> None:
    """In its order. An unknown log is a 404, as the specification has it since, not a 403."""
    assert SIGSUM.endswith(hashlib.sha256(bytes.fromhex(PUBLIC)).hexdigest())
    from fedsys.transparency.note import ED25519, VerifierKey

    vkey = VerifierKey(name=SIGSUM, algorithm=ED25519, public=bytes.fromhex(PUBLIC))
    folder = WitnessFolder.create(tmp_path / "w", name="example.com/witness", logs=[str(vkey)])
    witness = Witness(folder)
    other = THREE.replace("309e562", "309e563")
    exchange = [
        (f"old 0\n\n{ONE}", 200, "— example.com/witness "),
        (f"old 1\n{PROOF3}\n{THREE.replace('x6go=', 'x6gx=')}", 403, ""),
        (f"old 1\n{PROOF3}\n{other}", 404, ""),
        (f"old 1\n\n{THREE}", 422, "consistent"),
        (f"old 1\n{BAD3}\n{THREE}", 422, "consistent"),
        (f"old 1\n{PROOF3}\n{THREE}", 200, "— example.com/witness "),
        (f"old 1\n{PROOF3}\n{FIVE}", 409, "3\n"),
        (f"old 3\n{PROOF5}\n{FIVE}", 200, "— example.com/witness "),
        (f"old 0\n\n{FIVE}", 409, "5\n"),
    ]
    for body, status, words in exchange:
        reply = witness.add_checkpoint(body.encode())
        assert (reply.status, words in reply.body.decode()) == (status, True), body


# -- the folder ----------------------------------------------------------------------------------


def test_a_folder_keeps_its_secrets(tmp_path: Path) -> None:
    folder = WitnessFolder.create(tmp_path / "w", name="w", logs=[])
    assert (tmp_path / "w").stat().st_mode & 0o777 == 0o700
    assert folder.key_file.stat().st_mode & 0o777 == 0o600
    assert folder.key().private_bytes_raw() not in (tmp_path / "w" / "witness.vkey").read_bytes()
    folder.key_file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Witness(folder)
    folder.key_file.unlink()
    folder.key_file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        folder.key()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = WitnessFolder.create(tmp_path / "w", name="w", logs=[])
    with folder.alone(), pytest.raises(ConfigError, match="another witness"), folder.alone():
        pass
    with folder.alone():
        pass


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "name: field required"),
        ('name = "a b"', "not a key name"),
        ('name = "w"\nlogs = ["x"]', "not a log's key"),
        ('name = "w"\nother = 1', "other: extra"),
        ("name = ", "correct it there"),
    ],
)
def test_bad_settings_say_where(tmp_path: Path, content: str, words: str) -> None:
    folder = WitnessFolder.create(tmp_path / "w", name="w", logs=[])
    folder.settings_file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        folder.settings()


def test_a_folder_is_made_once_and_for_logs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--name"):
        WitnessFolder.create(tmp_path / "w", name="", logs=[])
    with pytest.raises(ConfigError, match="not a log's key"):
        WitnessFolder.create(tmp_path / "w", name="w", logs=["zz"])
    made = WitnessFolder.create(tmp_path / "w", name="w", logs=[])
    with pytest.raises(ConfigError, match="not a log's key"):  # a witness is no log
        WitnessFolder.create(tmp_path / "v", name="v", logs=[str(made.vkey_of("w", made.key()))])
    with pytest.raises(ConfigError, match="not empty"):
        WitnessFolder.create(tmp_path / "w", name="w", logs=[])
    with pytest.raises(ConfigError, match="no witness here"):
        WitnessFolder.open(tmp_path / "x")


def test_an_answer_is_signature_lines_alone() -> None:
    for raw in (b"", b"text\n", b"a\n\n" + "— n AAAAAAA=\n".encode()):
        with pytest.raises(NoteError):
            parse_signatures(raw)
