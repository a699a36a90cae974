"""Nothing that holds a secret shows it where it is printed: in a log, a traceback, a debugger."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.identity import Credentials, TlsKey
from client.privatize import privatize
from client.volatile import VolatileStore
from fedsys.privacy import Signer
from fedsys.privacy.encoding.clipping import clip_to_integers
from fedsys.privacy.randomness import AesCtrStream
from fedsys.wire.roster_authority import RosterAuthority
from fedsys.wire.token import JoinToken
from secure_agg import FileStore, Identity, MemoryStore, SealingKeys
from secure_agg.checking import Held
from secure_agg.gaussian import Keystream, Sampler
from secure_agg.prekeys import Bound
from secure_agg.products import Multiplier
from secure_agg.progress import Progress, Work
from secure_agg.sealing import Opener
from server.checkpoint import Checkpoint
from server.home.folder import Home
from server.home.pki import ServerIdentity
from server.home.state import State
from simulations.randomness import SeededRandomness
from tests.client.devices import PLAN, Devices

SECRET = b"\xc0\xff\xee\xc0\xde" * 6 + b"\xab\xcd"
NUMBER = 0.271828


def credentials(folder: Path) -> Credentials:
    return Credentials(
        folder=folder,
        node=1,
        name="ward",
        coordinator="localhost:1",
        identity=Identity(SECRET),
        ca=b"",
        roster_key=bytes(32),
        signer=bytes(32),
    )


def authority(folder: Path) -> RosterAuthority:
    return RosterAuthority(path=folder, _key=Ed25519PrivateKey.from_private_bytes(SECRET))


def store(folder: Path) -> FileStore:
    found = FileStore(folder / "round.state")
    found.save(SECRET)
    return found


def held(_folder: Path) -> Held:
    shares = np.frombuffer(SECRET, "<u2").reshape(1, -1)
    return Held(dealers=(1,), sequences=(0,), rows=bytes(40), shares=shares)


def bound(_folder: Path) -> Bound:
    return Bound(session=bytes(32), public=bytes(32), private=SECRET, work=SECRET)


def progress(folder: Path) -> Progress:
    works = {0: Work(held=held(folder))}
    return Progress(private=SECRET, works=works, last=(bytes(32), SECRET))


def sealing_keys(folder: Path) -> SealingKeys:
    found = SealingKeys(Identity(SECRET), entropy=lambda size: SECRET[:size])
    found.issue(1)
    return found


def volatile(place: Path | None, device: Path) -> VolatileStore:
    found = VolatileStore(device, place)
    found.save(SECRET)
    return found


MAKERS: dict[str, Callable[[Path], Any]] = {
    "identity": lambda folder: Identity(SECRET),
    "credentials": credentials,
    "tls": lambda folder: TlsKey.of_scalar(SECRET[:31]),
    "token": lambda folder: JoinToken(
        ca=b"ca", certificate=b"c", private_key=SECRET, roster_key=bytes(32)
    ),
    "server": lambda folder: ServerIdentity(private_key=SECRET, certificate=b"c"),
    "signer": lambda folder: Signer(Ed25519PrivateKey.from_private_bytes(SECRET)),
    "roster's authority": authority,
    "stream": lambda folder: AesCtrStream(SECRET),
    "seeded": lambda folder: SeededRandomness(SECRET),
    "file": store,
    "memory": lambda folder: MemoryStore(SECRET),
    "volatile, on tmpfs": lambda folder: volatile(folder, folder),
    "volatile, in memory": lambda folder: volatile(None, folder),
    "sealing keys": sealing_keys,
    "opener": lambda folder: Opener(SECRET, 1, bytes(32), 0),
    "bound": bound,
    "shares": held,
    "work": lambda folder: Work(held=held(folder)),
    "progress": progress,
    "keystream": lambda folder: Keystream(SECRET),
    "sampler": lambda folder: Sampler(SECRET),
    "multiplier": lambda folder: Multiplier(np.frombuffer(SECRET * 64, np.int8), 20),
    "checkpoint": lambda folder: Checkpoint(
        round=1, weights=np.zeros(2, dtype=np.float32), mechanism=SECRET
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_secret_is_not_in_its_holders_text(name: str, tmp_path: Path) -> None:
    found = MAKERS[name](tmp_path)
    for text in (repr(found), str(found), f"{found}", repr([found])):
        assert "c0ffee" not in text.lower()
        assert repr(SECRET)[2:14] not in text
        assert str(list(SECRET))[1:12] not in text
        assert str(int.from_bytes(SECRET[:2], "little")) not in text


def test_a_coordinators_folder_shows_no_key(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "c", hosts=["localhost"])
    state = State.open(home.path)
    try:
        token = home.registry(state).issue_token("a")
        shown = repr((home, home.authority, home.registry(state), home.server_identity(), token))
    finally:
        state.close()
    for path in home.path.iterdir():
        if path.suffix in (".key", ".ed25519"):
            assert path.read_bytes().hex() not in shown
    assert "PRIVATE" not in shown
    assert token.private_key.hex() not in shown
    assert token.encode()[20:60] not in shown


def test_an_update_is_not_in_the_text_of_what_holds_it(tmp_path: Path) -> None:
    updates = np.full((1, PLAN.dimension), NUMBER, dtype=np.float32)
    mechanism = PLAN.build_mechanism()
    clipped = clip_to_integers(updates, clip=1.0)
    encoded = mechanism.encode(updates, seed=b"s")
    done = privatize(mechanism, updates, seed=b"s", entropy=AesCtrStream(SECRET))
    for holder, secret in (
        (clipped, clipped.values),
        (encoded, encoded.values),
        (done, done.values),
    ):
        shown = re.sub(r"[\s,]+", " ", repr(holder))
        assert " ".join(map(str, secret[0, :3].tolist())) not in shown
        assert "True" not in repr(holder)
    device = Devices(tmp_path).all[0]
    assert "Identity" not in repr(device.session)
