"""Witnesses' cosignatures against the ledger: what they catch, and that nothing breaks on them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsys import report
from fedsys.audit import audit_run
from fedsys.audit.witnessed import Pins, load_checkpoint, load_witnesses, witnessed
from fedsys.errors import AuditInputError
from fedsys.privacy import LedgerView, Signer, read_ledger
from fedsys.privacy.ledger.cosigned import (
    CosignedHead,
    read_cosigned,
    read_proof,
    write_cosigned,
    write_proof,
)
from fedsys.records import Claim
from fedsys.transparency import SignedNote, cosign
from fedsys.transparency.note import COSIGNATURE_V1, VerifierKey
from fedsys.transparency.submission import Submission, parse_signatures
from fedsys.witness.cosigning import Witness
from fedsys.witness.folder import WitnessFolder, origin_hash
from tests.fedsys.audit.conftest import failures
from tests.fedsys.audit.forge import close_again, edit_json, entries, sign_again


def witness(path: Path, signer: Signer) -> Witness:
    folder = WitnessFolder.create(path, name=f"w.example/{path.name}", logs=[signer.public_hex])
    return Witness(folder, clock=lambda: 1_700_000_000)


@pytest.fixture
def alice(tmp_path: Path, signer: Signer) -> Witness:
    return witness(tmp_path / "alice", signer)


@pytest.fixture
def bob(tmp_path: Path, signer: Signer) -> Witness:
    return witness(tmp_path / "bob", signer)


def view_of(run: Path) -> LedgerView:
    return read_ledger(run / "ledger.jsonl")


def show(by: Witness, run: Path, signer: Signer, *, old: int = 0, size: int | None = None) -> bool:
    """Has a ledger cosigned; whether it was, and then it is kept in the folder."""
    view = view_of(run)
    size = view.lines if size is None else size
    note = signer.sign_checkpoint(view.tree, size, job=bytes.fromhex(view.header["job"]))
    proof = tuple(view.tree.consistency_proof(old, size))
    reply = by.add_checkpoint(Submission(old=old, proof=proof, note=note).encode())
    if reply.status != 200:
        return False
    note = note.with_signatures(parse_signatures(reply.body))
    path = run / "cosigned.jsonl"
    kept = read_cosigned(path) if path.exists() else []
    others = [each for each in kept if each.witness != by.vkey]
    write_cosigned(path, [*others, CosignedHead(witness=by.vkey, note=note)])
    return True


def said(run: Path, *by: Witness) -> dict[str, Claim]:
    """What the audit says of witnesses, by name of the claim."""
    pins = Pins(witnesses=tuple(each.vkey for each in by))
    return {each.name: each for each in witnessed(run, view_of(run), pins).claims}


def holds(run: Path, *by: Witness) -> dict[str, bool | None]:
    return {name: each.holds for name, each in said(run, *by).items()}


def test_every_run_has_a_signed_head(run: Path) -> None:
    assert holds(run) == {"Signed head": True}
    proof = read_proof(run / "ledger.tlog-proof")
    assert proof.index == view_of(run).lines - 1


def test_witnesses_stand_for_what_they_cosigned(
    run: Path, signer: Signer, alice: Witness, bob: Witness
) -> None:
    lines = view_of(run).lines
    assert show(alice, run, signer)
    assert show(bob, run, signer, size=4)
    report.build(run, audit_run(run), private=True)
    result = audit_run(
        run, witnesses=[str(alice.vkey), str(bob.vkey)], page=report.render, key=signer.public_hex
    )
    assert failures(result) == set()
    found = {each.name: each for each in result.claims}
    assert found["Witness w.example/alice"].holds is True
    assert found["Witness w.example/bob"].holds is None
    assert found["Witness w.example/bob"].rederived == (
        f"the first 4 of {lines} lines (reservations up to round 2), 2023-11-14 22:13:20 UTC"
    )
    assert result.details["witnessed"] == {"w.example/alice": lines, "w.example/bob": 4}
    assert any("cannot be rewritten without the witnesses" in note for note in result.notes)


def test_without_pins_witnesses_are_the_folders_own_word(
    run: Path, signer: Signer, alice: Witness
) -> None:
    show(alice, run, signer)
    assert said(run)["Cosigned heads"].holds is None
    assert "anybody can make such witnesses" in said(run)["Cosigned heads"].rederived
    assert not any("written again" in note for note in audit_run(run).notes)


def test_a_ledger_cut_off_with_the_coordinators_key(
    run: Path, signer: Signer, alice: Witness
) -> None:
    """Closed again after two rounds, everything in the folder made to agree."""
    show(alice, run, signer)
    stored = alice.checkpoint(origin_hash(view_of(run).origin))
    (run / "elsewhere").write_bytes(stored.body)
    lines = entries(run)
    sign_again(run, [*lines[:5], (lines[-1][0], {**lines[-1][1], "lines": 6})], signer)
    close_again(run, signer)
    found = said(run, alice)
    assert found["Cosigned heads"].holds is False
    assert "w.example/alice cosigned another ledger: it is of" in found["Cosigned heads"].rederived
    assert "cut off" in found["Witness w.example/alice"].rederived
    # Without the witness's word in the folder, it has to be asked for.
    (run / "cosigned.jsonl").unlink()
    view = view_of(run)
    job = bytes.fromhex(view.header["job"])
    write_proof(run / "ledger.tlog-proof", view.tree, signer.sign_checkpoint(view.tree, 6, job=job))
    assert holds(run) == {"Signed head": True}
    assert holds(run, alice)["Witness w.example/alice"] is False
    note = load_checkpoint(run / "elsewhere")
    for pins in (
        Pins(checkpoints=(("c", note),)),
        Pins(witnesses=(alice.vkey,), checkpoints=(("c", note),)),
    ):
        claims = {each.name: each for each in witnessed(run, view, pins).claims}
        assert claims["Checkpoint c"].holds is False
        assert "cut off" in claims["Checkpoint c"].rederived
    assert "w.example/alice" in claims["Checkpoint c"].claimed
    # The cut ledger cannot be cosigned any more either.
    assert not show(alice, run, signer)
    assert not show(alice, run, signer, old=6)


def test_a_fork_is_seen_by_both_witnesses(
    run: Path, signer: Signer, alice: Witness, bob: Witness, tmp_path: Path
) -> None:
    lines = view_of(run).lines
    for by in (alice, bob):
        assert show(by, run, signer, size=lines - 1)
    fork = Path(shutil.copytree(run, tmp_path / "fork"))
    new = entries(fork)
    new[1][1]["event"]["share_variance"] = 1.0
    sign_again(fork, new, signer)
    close_again(fork, signer)
    for by in (alice, bob):
        assert not show(by, fork, signer, old=lines - 1)
        assert show(by, run, signer, old=lines - 1)
    assert holds(run, alice, bob) == {
        "Signed head": True,
        "Cosigned heads": True,
        "Witness w.example/alice": True,
        "Witness w.example/bob": True,
    }
    found = said(fork, alice, bob)
    assert found["Cosigned heads"].holds is False
    assert "two histories" in found["Cosigned heads"].rederived
    assert "it cosigned another ledger" in found["Witness w.example/bob"].rederived
    assert {"Cosigned heads", "Witness w.example/alice"} <= failures(
        audit_run(fork, witnesses=[str(alice.vkey)])
    )


def test_a_split_view_has_one_half_of_the_witnesses(
    run: Path, signer: Signer, alice: Witness, bob: Witness, tmp_path: Path
) -> None:
    """Two histories, each cosigned by one witness: to an audit that pins both, neither is whole."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    new = entries(other)
    new[1][1]["event"]["share_variance"] = 1.0
    sign_again(other, new, signer)
    close_again(other, signer)
    assert show(alice, run, signer)
    assert show(bob, other, signer)
    assert holds(run, alice, bob)["Witness w.example/bob"] is False
    assert holds(other, alice, bob)["Witness w.example/alice"] is False
    (head,) = read_cosigned(other / "cosigned.jsonl")  # bob's word on the other history
    pins = Pins(checkpoints=(("bob's", head.note),))
    claims = {each.name: each.holds for each in witnessed(run, view_of(run), pins).claims}
    assert claims["Checkpoint bob's"] is False


def test_a_witness_that_was_rolled_back_convicts_itself(
    run: Path, signer: Signer, alice: Witness, tmp_path: Path
) -> None:
    assert show(alice, run, signer)
    (first,) = read_cosigned(run / "cosigned.jsonl")
    for each in (tmp_path / "alice" / "checkpoints").iterdir():
        each.unlink()
    new = entries(run)
    new[1][1]["event"]["share_variance"] = 1.0
    sign_again(run, new, signer)
    assert show(alice, run, signer)  # it forgot, and cosigns the other history
    pins = Pins(witnesses=(alice.vkey,), checkpoints=(("kept", first.note),))
    claims = {each.name: each for each in witnessed(run, view_of(run), pins).claims}
    assert claims["Checkpoint kept"].holds is False
    assert claims["Witness w.example/alice"].holds is False
    assert "two histories" in claims["Witness w.example/alice"].rederived


def test_invented_and_forged_witnesses(
    run: Path, signer: Signer, alice: Witness, tmp_path: Path
) -> None:
    impostor = witness(tmp_path / "x" / "alice", signer)  # its name, another key
    assert impostor.vkey.name == alice.vkey.name
    show(impostor, run, signer)
    assert holds(run, alice)["Witness w.example/alice"] is False
    (head,) = read_cosigned(run / "cosigned.jsonl")
    claimed = dataclasses.replace(head, witness=alice.vkey)
    write_cosigned(run / "cosigned.jsonl", [claimed])
    assert holds(run, alice)["Cosigned heads"] is False
    line = head.note.signatures[-1]
    forged = dataclasses.replace(line, id=alice.vkey.id)
    note = dataclasses.replace(head.note, signatures=(head.note.signatures[0], forged))
    write_cosigned(run / "cosigned.jsonl", [CosignedHead(witness=alice.vkey, note=note)])
    found = said(run, alice)
    assert found["Cosigned heads"].holds is False
    assert "does not verify" in found["Witness w.example/alice"].rederived


def test_who_is_not_pinned_is_not_counted_with_those_who_are(
    run: Path, signer: Signer, alice: Witness, tmp_path: Path
) -> None:
    """Not even under the name of a witness that is."""
    show(witness(tmp_path / "x" / "alice", signer), run, signer)
    show(alice, run, signer, size=4)
    found = said(run, alice)["Cosigned heads"]
    assert found.holds is True
    assert found.rederived.startswith("w.example/alice 4 lines; 1 more by keys that are not pinned")


def test_a_head_that_the_log_did_not_sign(run: Path, signer: Signer) -> None:
    """A witness in league with somebody who is not the coordinator."""
    key = Ed25519PrivateKey.generate()
    view = view_of(run)
    mallory = Signer.generate()
    job = bytes.fromhex(view.header["job"])
    good = signer.sign_checkpoint(view.tree, view.lines, job=job)
    other_log = mallory.sign_checkpoint(view.tree, view.lines, job=job)
    unsigned = SignedNote(text=good.text, signatures=other_log.signatures)
    for note in (other_log, unsigned):
        line = cosign(note.text, name="w", key=key, timestamp=1)

        vkey = VerifierKey(
            name="w", algorithm=COSIGNATURE_V1, public=key.public_key().public_bytes_raw()
        )
        head = CosignedHead(witness=vkey, note=note.with_signatures([line]))
        write_cosigned(run / "cosigned.jsonl", [head])
        assert holds(run)["Cosigned heads"] is False


@pytest.mark.parametrize("name", ["cosigned.jsonl", "ledger.tlog-proof"])
def test_hostile_files(run: Path, signer: Signer, alice: Witness, name: str) -> None:
    show(alice, run, signer)
    path = run / name
    good = path.read_bytes()
    claim = {"cosigned.jsonl": "Cosigned heads", "ledger.tlog-proof": "Signed head"}[name]
    bad = [
        good[:-1] + b"x",
        good[: len(good) // 2],
        good.replace(b"fedsys/ledger", b"fedsys/ledges"),
        b"\xff" * 100,
        b"{}\n",
        b'{"note":1,"witness":2}\n',
        b"[" * 1000 + b"\n",
        good * 70,
        b"x" * (1 << 24),
    ]
    for content in bad:
        path.write_bytes(content)
        assert holds(run, alice)[claim] is False, content[:80]
    path.unlink()
    path.symlink_to("/dev/zero")
    assert holds(run, alice)[claim] is False
    path.unlink()
    path.mkdir()
    assert holds(run, alice)[claim] is False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(raw=st.binary(max_size=80), place=st.integers(0, 2000))
def test_no_content_breaks_the_audit(
    run: Path, signer: Signer, alice: Witness, raw: bytes, place: int
) -> None:
    if not (run / "cosigned.jsonl").exists():
        show(alice, run, signer)
    for name in ("cosigned.jsonl", "ledger.tlog-proof"):
        good = (run / name).read_bytes()
        try:
            (run / name).write_bytes(good[:place] + raw + good[place + len(raw) :])
            changed = (run / name).read_bytes() != good
            found = holds(run, alice)
            assert not changed or False in found.values(), found
        finally:
            (run / name).write_bytes(good)


def test_a_ledger_that_names_no_job(run: Path, signer: Signer, alice: Witness) -> None:
    show(alice, run, signer)
    new = entries(run)
    new[0][1]["job"] = "x"
    sign_again(run, new, signer)
    assert holds(run, alice) == {"Cosigned heads": False}


def test_a_closed_run_keeps_its_witnesses_when_published(
    run: Path, signer: Signer, alice: Witness, tmp_path: Path
) -> None:
    from fedsys.release.publication import publish_run

    show(alice, run, signer)
    out = publish_run(run, tmp_path / "public").path
    assert holds(out, alice)["Witness w.example/alice"] is True
    edit_json(out, lambda body: body.update(name="other"))
    assert "Summary as closed" in failures(audit_run(out))


def test_keys_and_checkpoints_that_are_none(tmp_path: Path, alice: Witness) -> None:
    both = tmp_path / "keys"
    both.write_text(f"{alice.vkey}\n")
    assert load_witnesses([str(both), str(alice.vkey)]) == (alice.vkey,)
    log = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
    for text in ("nothing", log, str(alice.vkey)[:-3], str(tmp_path)):
        with pytest.raises(AuditInputError, match="--witness"):
            load_witnesses([text])
    for content in (b"", b"x\n\n", b"a\n\n" + "— n AAAAAAA=\n".encode()):
        both.write_bytes(content)
        with pytest.raises(AuditInputError, match="--checkpoint"):
            load_checkpoint(both)
