"""The ledger as a log: its tree, its signed head, and the files that hold what others cosigned."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.errors import LedgerError
from fedsys.privacy import Ledger, Signer, read_ledger
from fedsys.privacy.ledger.cosigned import (
    MOST_WITNESSES,
    CosignedHead,
    read_cosigned,
    read_proof,
    write_cosigned,
    write_proof,
)
from fedsys.transparency import Checkpoint, MerkleTree, VerifierKey, cosign, leaf_hash
from fedsys.transparency.note import COSIGNATURE_V1
from fedsys.transparency.origin import log_key, origin_of, signer_of

JOB = bytes(range(32))
SIGNER = Signer.generate(entropy=lambda n: b"s" * n)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def ledger_at(path: Path) -> Ledger:
    return Ledger.create(
        path / "ledger.jsonl", path / "private.jsonl", signer=SIGNER, header={"job": JOB.hex()}
    )


def by_hand(path: Path) -> MerkleTree:
    """The tree as LEDGER.md says it, of the file."""
    tree = MerkleTree()
    for line in (path / "ledger.jsonl").read_bytes().split(b"\n")[:-1]:
        tree.append(leaf_hash(line))
    return tree


def test_the_tree_is_that_of_the_lines_on_disk(tmp_path: Path) -> None:
    with ledger_at(tmp_path) as ledger:
        assert len(ledger.tree) == 1
        ledger.reserve(1, {"event": {}})
        assert ledger.tree.root() == by_hand(tmp_path).root()
        ledger.commit(1, {}, sampled=[1], survivors=[1], after=lambda: None)
        assert len(ledger.tree) == 2, "the commit is held"
        ledger.reserve(2, {"event": {}})
        assert len(ledger.tree) == 4, "it went to the disk with the next line"
        assert ledger.tree.root() == by_hand(tmp_path).root()
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"torn')
    paths = tmp_path / "ledger.jsonl", tmp_path / "private.jsonl"
    with Ledger.open(*paths, signer=SIGNER) as ledger:
        assert ledger.tree.root() == by_hand(tmp_path).root()
        assert ledger.view is not None
        assert len(ledger.view.tree) == 4
        assert len(ledger.tree) == 5, "and the line that says it was resumed"
        ledger.close("completed")
        assert ledger.tree.root() == by_hand(tmp_path).root()
    view = read_ledger(paths[0])
    assert view.tree.root() == by_hand(tmp_path).root()
    assert [each.reserved_at for each in view.rounds] == [1, 3]


def test_a_line_that_could_not_be_written_is_no_leaf(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(5, "no disk")

    ledger = ledger_at(tmp_path)
    ledger.reserve(1, {"event": {}})
    ledger.commit(1, {}, sampled=[1], survivors=[1], after=fail)
    with pytest.raises(LedgerError):
        ledger.settle()
    assert len(ledger.tree) == 2


def test_the_head_is_signed_by_the_ledgers_key(tmp_path: Path) -> None:
    with ledger_at(tmp_path) as ledger:
        note = SIGNER.sign_checkpoint(ledger.tree, 1, job=JOB)
        view = read_ledger(tmp_path / "ledger.jsonl")
    assert view.origin == f"fedsys/ledger/v1/{SIGNER.public_hex}/{JOB.hex()}"
    assert len(view.origin) == 146
    assert note.is_signed_by(log_key(view.origin))
    assert Checkpoint.parse(note.text).root == view.tree.root()
    assert signer_of(view.origin) == SIGNER.public_hex


@pytest.mark.parametrize("name", ["", "x", "fedsys/ledger/v1/", "fedsys/ledger/v1/" + "g" * 129])
def test_other_names_are_no_jobs(name: str) -> None:
    assert signer_of(name) is None
    with pytest.raises(ValueError, match="not the origin"):
        log_key(name)
    with pytest.raises(ValueError, match="64 lower-case"):
        origin_of(signer=name, job="00" * 32)


def test_a_header_without_a_job_is_no_log(tmp_path: Path) -> None:
    paths = tmp_path / "ledger.jsonl", tmp_path / "private.jsonl"
    with Ledger.create(*paths, signer=SIGNER, header={}):
        pass
    with pytest.raises(LedgerError, match="names no job"):
        _ = read_ledger(paths[0]).origin


def head_of(tree: MerkleTree, name: str) -> CosignedHead:
    note = SIGNER.sign_checkpoint(tree, len(tree), job=JOB)
    line = cosign(note.text, name=name, key=KEY, timestamp=7)
    public = KEY.public_key().public_bytes_raw()
    vkey = VerifierKey(name=name, algorithm=COSIGNATURE_V1, public=public)
    return CosignedHead(witness=vkey, note=note.with_signatures([line]))


def test_files_read_back_and_fit_their_schema(tmp_path: Path) -> None:
    with ledger_at(tmp_path) as ledger:
        tree = ledger.tree
        heads = [head_of(tree, "w.example/1"), head_of(tree, "witness.örg/ñ")]
        write_proof(tmp_path / "p", tree, heads[0].note)
    write_cosigned(tmp_path / "c", heads)
    assert read_cosigned(tmp_path / "c") == heads
    proof = read_proof(tmp_path / "p")
    assert (proof.index, proof.path, proof.note) == (0, (), heads[0].note)
    jsonschema = pytest.importorskip("jsonschema")
    source = importlib.resources.files("fedsys.privacy").joinpath("cosigned.schema.json")
    schema = json.loads(source.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for raw in (tmp_path / "c").read_bytes().splitlines():
        line = json.loads(raw)
        validator.validate(line)
        for change in ({"note": "x"}, {"witness": "x"}, {"more": 1}):
            assert not validator.is_valid(line | change)


def test_what_is_written_otherwise_is_refused(tmp_path: Path) -> None:
    with ledger_at(tmp_path) as ledger:
        head = head_of(ledger.tree, "w")
    good = head.encode() + b"\n"
    path = tmp_path / "c"
    for bad, why in (
        (good[:-1], "torn"),
        (good * (MOST_WITNESSES + 1), "more than 64"),
        (good.replace(b'"note":', b'"note": '), "canonical"),
        (good.replace(b"w+", b"v+"), "another key's"),
        (b"{}\n", "keys note and witness"),
        (good.replace(b'"witness"', b'"w"'), "keys note and witness"),
        (good.replace(b"=\\n", b"\\n"), "base64"),
        (b"x" * (1 << 18), "longer than"),
    ):
        path.write_bytes(bad)
        with pytest.raises(LedgerError, match=why):
            read_cosigned(path)
