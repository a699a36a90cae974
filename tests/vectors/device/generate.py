"""Test vectors of a device, for `fedsys/wire/DEVICE.md`: what another language has to reproduce.

    python -m tests.vectors.device.generate

Bytes are hexadecimal, and long replies their SHA-256. Vectors of float32 are their bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client.graphs.engine import engine_of
from client.graphs.trainer import GraphTrainer
from client.ledger_copy import LedgerCopy, Sent, event_digest, parse_lines
from client.training.held_out import kept_for
from client.training.local import LocalConfig
from client.training.schedule import batches
from fedsys.errors import LedgerError, ProtocolError
from fedsys.graphs import Limits, vet
from fedsys.privacy import AesCtrStream
from fedsys.privacy.encoding.clipping import clip_to_integers
from fedsys.privacy.encoding.rings import to_ring
from fedsys.privacy.ledger.lines import canonical, signed_message
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.privacy.mechanisms.base import add_noise
from fedsys.privacy.noise import noise_sampler
from fedsys.privacy.noise.grids import FEWEST_ON_GRIDS
from fedsys.privacy.noise.inversion import FURTHER_BYTES, settle
from fedsys.privacy.noise.table import upper_words
from fedsys.privacy.planning import make_plan
from fedsys.wire import Assignment
from fedsys.wire.assignment import batch_seed
from fedsys.wire.canonical import decode_object
from fedsys.wire.countersign import Countersignature
from fedsys.wire.countersign import message as countersigned
from fedsys.wire.frames import split
from fedsys.wire.roster import RosterStatement, SignedStatement
from fedsys.wire.roster import signed_message as signed_roster
from fedsys.wire.roster_chain import RosterChain, RosterChange, shortest
from fedsys.wire.terms import Terms
from secure_agg import RoundContext, SecAggParams
from secure_agg.messages import Kind
from tests.fedsys.privacy.ledger.ledgers import chained
from tests.secure_agg.world import World, fixed_entropy

__all__ = ["PATH", "build", "trained"]

PATH = Path(__file__).with_name("vectors.json")
JOB = bytes(range(32))
MEMBER = 4
LARGE = 1024
LOCAL = {
    "epochs": 2, "batch_size": 4, "optimizer": "sgd", "learning_rate": 0.5,
    "momentum": 0.0, "weight_decay": 0.0, "proximal_mu": 0.0,
}  # fmt: skip


def _floats(count: int, number: int, norm: float) -> NDArray[np.float32]:
    """Reproducible without any library's generator: words of an AES-CTR stream."""
    words = AesCtrStream(number.to_bytes(32, "big")).words(count)
    row = words.astype(np.float64) * 2.0**-63 - 1.0
    scaled: NDArray[np.float32] = (row * norm / np.sqrt(count / 3)).astype(np.float32)
    return scaled


def _hex(array: NDArray[Any]) -> str:
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes().hex()


def _terms() -> Terms:
    plan = make_plan(
        mechanism="distributed-gaussian", population=10, expected_cohort=10, rounds=3,
        dimension=650, clip=1.0, delta=1e-5, noise_multiplier=1.0, sampling="fixed",
    )  # fmt: skip
    return Terms(
        job=JOB, name="vectors", task="digits", options={}, task_sha256="0" * 64, local=LOCAL,
        path="loop", dimension=650, example_clip=1.0, plan=plan, seed=7, roster_version=1,
        roster_hash="1" * 64, graph_sha256="2" * 64,
    )  # fmt: skip


def _agreement() -> dict[str, Any]:
    terms = _terms()
    assignment = Assignment(
        job=JOB, round=2, task="digits", weights=_floats(650, 1, 1.0), local=LOCAL,
        mechanism=terms.plan.event().to_json(), seed=7, terms=terms.digest,
    )  # fmt: skip
    return {
        "terms": terms.encoded.hex(),
        "terms_digest": terms.digest.hex(),
        "head": assignment.head.hex(),
        "weights": assignment.weights_bytes.hex(),
        "assignment_digest": assignment.digest.hex(),
    }


def _batches() -> list[dict[str, Any]]:
    found = []
    for seed, round_, client, rows, size, epochs in (
        (7, 1, 0, 10, 4, 2),
        (2**40, 900, 63, 5, 5, 1),
    ):
        own = batch_seed(seed, round_, client)
        local = LocalConfig(batch_size=size, epochs=epochs)
        listed = [each.tolist() for each in batches(np.arange(rows), own, local)]
        found.append(
            {"seed": seed, "round": round_, "client": client, "rows": rows, "batch_size": size,
             "epochs": epochs, "batch_seed": str(own), "batches": listed}
        )  # fmt: skip
    return found


def _clipping() -> list[dict[str, Any]]:
    found = []
    rows = [(1, 1.0, 1.0), (7, 0.5, 1.0), (7, 40.0, 1.0), (33, 1.0, 1.0), (650, 3.0, 0.01)]
    updates = [(_floats(d, number, norm), clip) for number, (d, norm, clip) in enumerate(rows)]
    updates.append((np.array([np.nan, 1, 2], np.float32), 1.0))
    updates.append((np.array([3e38, -3e38, 1], np.float32), 1.0))
    updates.append((np.array([1e-40, -2e-40], np.float32), 1e-42))
    updates.append((np.full(3, 1 / 128 / np.sqrt(3), np.float32), 1.0))
    for update, clip in updates:
        integers = clip_to_integers(update[None], clip=clip).values
        ring = to_ring(integers, bits=20)
        found.append(
            {"update": _hex(update), "clip": clip, "integers": integers[0].tolist(), "bits": 20,
             "ring": ring[0].tolist()}
        )  # fmt: skip
    return found


def _noise() -> list[dict[str, Any]]:
    """Draws from a stream, and words that equal an entry of the table, on both sides of 0."""
    found = []
    for sigma, count in ((0.75, 200), (3.0, 200), (1000.25, 200), (5000.5, 100)):
        key = bytes([9]) * 32
        drawn = noise_sampler(sigma).draw((count,), AesCtrStream(key))
        further, settled = AesCtrStream(bytes([10]) * 32), []
        entries = [int(word) for word in upper_words(sigma)[:3]] if sigma < FEWEST_ON_GRIDS else []
        for entry in entries:
            for word in (entry, (1 << 64) - 1 - entry):
                for more in (bytes(FURTHER_BYTES), further(FURTHER_BYTES), b"\xff" * FURTHER_BYTES):
                    k = settle(word, sigma, 0.0, _Replayed(more))  # type: ignore[arg-type]
                    settled.append([f"{word:016x}", more.hex(), k])
        found.append(
            {"sigma": sigma, "key": key.hex(), "drawn": drawn.tolist(), "settled": settled}
        )
    return found


class _Replayed:
    """A stream that gives bytes which were drawn before."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __call__(self, count: int) -> bytes:
        assert count == len(self._content)
        return self._content


def _adding() -> dict[str, Any]:
    values = to_ring(np.array([[-5, 0, 524287, 3]], np.int32), bits=20)
    noise = np.array([[2, -1, 1, -4]], np.int64)
    start = values[0].tolist()
    return {"bits": 20, "values": start, "noise": noise[0].tolist(),
            "sum": add_noise(values, noise, bits=20)[0].tolist()}  # fmt: skip


def _exported() -> tuple[bytes, NDArray[np.float32], NDArray[np.int64]]:
    """The graph of task digits, and six of its examples."""
    from fedsys import tasks
    from fedsys.tasks.export import export_task

    task = tasks.load("digits")
    examples = task.clients(tasks.DataSource()).train
    made = export_task(task, examples, name="digits", options={}, batch_size=4)
    return made.encoded, examples.x[:6].numpy(), examples.y[:6].numpy()


def trained(
    graph: bytes, x: NDArray[np.float32], y: NDArray[np.int64]
) -> tuple[NDArray[np.float32], list[float]]:
    """The update and the losses of a training that `LOCAL` describes."""
    vetted = vet(graph, Limits())
    local = LocalConfig(**LOCAL)  # type: ignore[arg-type]
    trainer = GraphTrainer(vetted.graph, engine_of("numpy", vetted, 1), local, x, y)
    return trainer.update(_floats(650, 2, 0.5), np.arange(len(x)), 11)


def _training() -> dict[str, Any]:
    graph, x, y = _exported()
    update, losses = trained(graph, x, y)
    weights = _floats(650, 2, 0.5)
    return {
        "graph": graph.hex(), "local": LOCAL, "x": _hex(x), "y": y.tolist(), "seed": 11,
        "weights": _hex(weights), "update": _hex(update), "losses": losses, "tolerance": 5e-6,
    }  # fmt: skip


def _round() -> dict[str, Any]:
    """A round of secure aggregation as the fifth of ten members sees it."""
    params = SecAggParams.derive(n=10, corrupt=0.1, dropout=0.1, modulus_bits=20, dimension=50)
    context = RoundContext(job=JOB, round=2, model_hash=hashlib.sha256(b"model").digest())
    world = World(params, context=context, seed="device")
    drawn = fixed_entropy(f"device/member/{MEMBER}")
    sealing, entropy = drawn(32), drawn(32)
    steps: list[dict[str, str]] = []
    messages: Mapping[int, bytes] = world.server.begin()
    while messages:
        replies = world.deliver(messages, set())
        steps.append(
            {"kind": Kind(messages[MEMBER][1]).name, "message": messages[MEMBER].hex(),
             "reply": _short(replies[MEMBER])}
        )  # fmt: skip
        for sender, reply in replies.items():
            world.server.receive(sender, reply)
        messages = world.server.close_stage()
    return {
        "id": MEMBER,
        "identity": world.identities[MEMBER].private_bytes().hex(),
        "sealing": sealing.hex(),
        "prekey": world.prekeys[MEMBER].hex(),
        "entropy": entropy.hex(),
        "roster": {str(id_): key.hex() for id_, key in world.roster.items()},
        "roster_hash": world.roster.hash.hex(),
        "job": JOB.hex(),
        "round": 2,
        "model": context.model_hash.hex(),
        "params": params.encode().hex(),
        "vector": world.inputs[MEMBER].tolist(),
        "steps": steps,
    }


def _ledger() -> dict[str, Any]:
    """A ledger that a device of `_terms` accepts, what it signs then, and what it refuses."""
    terms, key = _terms(), Ed25519PrivateKey.from_private_bytes(bytes([11]) * 32)
    signer = key.public_key().public_bytes_raw()
    event, models = terms.plan.event().to_json(), [f"{number:064x}" for number in (1, 2)]
    roster = {"roster_version": terms.roster_version, "roster_sha256": terms.roster_hash}
    header = {
        "job": JOB.hex(), "plan": terms.plan.to_json(), "population": roster,
        "initial_weights_sha256": models[0],
    }  # fmt: skip
    entries: list[tuple[str, dict[str, Any]]] = [
        ("header", header),
        ("reserve", {"round": 1, "event": event}),
        ("commit", {"round": 1, "weights_sha256": models[1]}),
        ("resume", {}),
        ("reserve", {"round": 2, "event": event}),
        ("abort", {"round": 2}),
    ]
    own = {2: Sent(weights=models[1], event=event_digest(event), nonce="00" * NONCE_BYTES)}

    def lines(*changed: tuple[int, tuple[str, dict[str, Any]]]) -> bytes:
        content = [dict(changed).get(place, each) for place, each in enumerate(entries)]
        made = chained(content, lambda _, digest: key.sign(signed_message(digest)).hex())
        return b"".join(line + b"\n" for line in made)

    whole = lines()
    copy = LedgerCopy().extended(parse_lines(whole, signer), terms, own)
    wrong = {
        "a header of another job": lines((0, ("header", {**header, "job": "00" * 32}))),
        "a second header": lines((3, ("header", header))),
        "another price": lines((4, ("reserve", {"round": 2, "event": {**event, "clip": 2.0}}))),
        "another round": lines((4, ("reserve", {"round": 3, "event": event}))),
        "another model": lines((2, ("commit", {"round": 1, "weights_sha256": models[0]}))),
        "a round that is not open": lines((4, ("resume", {}))),
        "a line left out": b"".join(whole.splitlines(keepends=True)[:3:2]),
        "an edited line": whole.replace(b'"round":2}', b'"round":1}'),
        "another signer": whole[:-6] + (b"00" if whole[-6:-4] != b"00" else b"01") + whole[-4:],
        "half a line": whole[:-1],
    }
    for name, raw in wrong.items():
        try:
            LedgerCopy().extended(parse_lines(raw, signer), terms, own)
        except (LedgerError, ProtocolError):
            continue
        raise AssertionError(f"{name} is accepted")
    said = Countersignature(
        round=2, client=0, key=bytes(32), terms=terms.digest, ledger_head=bytes.fromhex(copy.head),
        previous=bytes([1]) * 32, weights=bytes.fromhex(models[1]), uploaded=True,
        nonce=bytes(range(16)), invitations=2, uploads=1,
    )  # fmt: skip
    return {
        "signer": signer.hex(), "lines": whole.decode(), "round": 2,
        "event": json.loads(canonical(event)), "weights": models[1], "head": copy.head,
        "wrong": {name: raw.decode() for name, raw in wrong.items()},
        "previous": said.previous.hex(), "nonce": said.nonce.hex(), "invitations": 2, "uploads": 1,
        "signed": countersigned(JOB, said).hex(),
    }  # fmt: skip


def _short(message: bytes) -> str:
    if len(message) <= LARGE:
        return message.hex()
    return "sha256 " + hashlib.sha256(message).hexdigest()


CANONICAL = (
    '{"a":1}', '{"a":-9007199254740993}', '{"a":0.1}', '{"a":-0.0}', '{"a":1e-05}', '{"a":1e+16}',
    '{"a":1000000000000000.0}', '{"a":[{},[],null,true]}', r'{"a":"\u00e9\ud83d\ude00\n\""}',
    '{"a":{"Z":1,"a":2,"aa":3}}',
)  # fmt: skip
OTHERWISE = (
    '{"a":1} ', '{"a": 1}', '{"a":01}', '{"a":+1}', '{"a":1.50}', '{"a":1e16}', '{"a":1e-5}',
    '{"a":NaN}', '{"a":1e999}', '{"a":9223372036854775808}', '{"a":"\u00e9"}',
    r'{"a":"\u0041"}', '{"a":[1,]}',
    '{"a":{"b":1,"a":2}}', '{"a":1,"a":1}', '{"a":1,"b":2}', "{}", "[1]", "",
)  # fmt: skip
"""What is no canonical JSON of an object whose one key is a."""


def _canonical() -> dict[str, Any]:
    for text in CANONICAL:
        decode_object(text.encode(), "a vector", frozenset("a"))
    for text in OTHERWISE:
        try:
            decode_object(text.encode(), "a vector", frozenset("a"))
        except ProtocolError:
            continue
        raise AssertionError(f"{text} is accepted")
    return {
        "keys": ["a"],
        "read": [text.encode().hex() for text in CANONICAL],
        "refused": [text.encode().hex() for text in OTHERWISE],
    }


def _rosters() -> dict[str, Any]:
    """A chain of five lists, the whole third one with which a device may begin, and what a device
    that holds the first `holds` of them refuses."""
    authority = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    key = authority.public_key().public_bytes_raw()
    keys = {node: hashlib.sha256(bytes([node])).digest() for node in range(1, 9)}

    def members(*nodes: int) -> dict[int, bytes]:
        return {node: keys[node] for node in nodes}

    def given(text: bytes, whole: RosterStatement) -> dict[str, Any]:
        signature = authority.sign(signed_roster(whole.encoded))
        return {"statement": text.decode(), "signature": signature.hex()}

    one = RosterStatement(version=1, previous=b"", members=members(1, 2))
    two = one.successor(members(1, 2, 3), colluders=0)
    three = two.successor(members(1, 3), colluders=1)
    four = three.successor(members(1, 3, 4), colluders=1)
    five = four.successor(members(1, 4, 5), colluders=0)
    lists = [one, two, three, four, five]
    before: list[RosterStatement | None] = [None, one, two, three, four]
    texts = [shortest(old, new) for old, new in zip(before, lists, strict=True)]
    texts[3] = four.encoded  # a whole list may follow as well
    accepted = [
        {**given(text, whole), "version": whole.version, "hash": whole.hash.hex()}
        for text, whole in zip(texts, lists, strict=True)
    ]
    other = two.successor(members(1, 2, 3, 6), colluders=0)
    elsewhere = other.successor(other.members, colluders=2)
    twice = RosterChange(version=3, added=members(2), removed=(), colluders=0)
    renamed = three.successor({**members(1), 3: keys[8]}, colluders=1)
    back = three.successor({**members(1, 3), 2: keys[8]}, colluders=1)
    unsorted = two.successor(members(1, 3, 2), colluders=1)
    text = unsorted.encoded.decode()
    first, second = (f'[{node},"{keys[node].hex()}"]' for node in (1, 2))
    swapped = text.replace(f"{first},{second}", f"{second},{first}").encode()
    refused = {
        "a signature over the change alone": {
            "statement": texts[1].decode(),
            "signature": authority.sign(signed_roster(texts[1])).hex(),
            "holds": 1,
        },
        "a change with another's signature": {**given(texts[1], three), "holds": 1},
        "a change of the list before": {**given(texts[2], three), "holds": 1},
        "a change of another list": {**given(shortest(other, elsewhere), elsewhere), "holds": 3},
        "a change for one that holds none": {**given(texts[1], two), "holds": 0},
        "a fork": {**given(other.encoded, other), "holds": 3},
        "a gap": {**given(five.encoded, five), "holds": 3},
        "another key": {**given(renamed.encoded, renamed), "holds": 3},
        "another key after it was removed": {**given(shortest(three, back), back), "holds": 3},
        "an added node that is there": {**given(twice.encoded, two), "holds": 2},
        "members in another order": {
            "statement": swapped.decode(),
            "signature": authority.sign(signed_roster(swapped)).hex(),
            "holds": 2,
        },
    }  # fmt: skip
    _check_rosters(key, accepted, refused)
    return {
        "key": key.hex(),
        "accepted": accepted,
        "first": {**given(three.encoded, three), "version": 3},
        "refused": refused,
    }


def _check_rosters(
    key: bytes, accepted: list[dict[str, Any]], refused: Mapping[str, dict[str, Any]]
) -> None:
    def signed(each: Mapping[str, Any]) -> SignedStatement:
        return SignedStatement(
            statement=each["statement"].encode(), signature=bytes.fromhex(each["signature"])
        )

    for name, each in refused.items():
        chain = RosterChain(key=key)
        chain.extend(map(signed, accepted[: each["holds"]]))
        try:
            chain.accept(signed(each))
        except ProtocolError:
            continue
        raise AssertionError(f"{name} is accepted")
    chain = RosterChain(key=key)
    assert [each.hash.hex() for each in chain.extend(map(signed, accepted))] == [
        each["hash"] for each in accepted
    ]


def _held_out() -> dict[str, Any]:
    kept = kept_for("train", np.arange(40), 0.3)
    return {"rows": 40, "held_out": 0.3, "trained": kept.tolist()}


def build(training: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All vectors, as JSON holds them.

    Args:
        training: those of training, made before; None to make them, which needs torch.
    """
    parcel = bytes(range(256)) * 100
    return {
        "frames": {
            "parcel": 3,
            "message": parcel.hex(),
            "chunk": 16384,
            "frames": [each.hex() for each in split(3, parcel, chunk=16384)],
        },
        "canonical": _canonical(),
        "rosters": _rosters(),
        "agreement": _agreement(),
        "ledger": _ledger(),
        "batches": _batches(),
        "held_out": _held_out(),
        "training": _training() if training is None else training,
        "clipping": _clipping(),
        "noise": _noise(),
        "adding": _adding(),
        "round": _round(),
    }


def main() -> None:
    """Write the file."""
    PATH.write_text(json.dumps(build(), indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
