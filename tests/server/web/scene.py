"""A coordinator's folder in the middle of its life, made without one running: for tests, pictures.

Runs are real, from simulations, and so are the figures that are derived from their ledgers; which
devices there are, and what they said, is written into the database.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.privacy import read_ledger
from fedsys.privacy.ledger.cosigned import CosignedHead, read_cosigned, write_cosigned
from fedsys.run_folder import RunFolder
from fedsys.transparency import Checkpoint, SignedNote, VerifierKey
from fedsys.transparency.cosignature import cosign
from fedsys.transparency.note import COSIGNATURE_V1, sign_note
from server.deployed.fleet import Fleet, Link
from server.home.folder import Home
from server.home.state import CertificateRow, HoldRow, JobRow, NodeRow, RefusalRow, RosterRow, State

__all__ = ["NOW", "Scene", "make_scene"]

NOW = 1_790_000_000.0
"""The clock of a test's scene, in seconds since 1970."""
_DAY = 86_400.0
_NAMES = ("clinic-east", "clinic-north", "clinic-south", "clinic-west", "lab-basel", "lab-turin")


@dataclass
class Scene:
    """A folder, its database and its open sessions."""

    home: Home
    state: State
    fleet: Fleet
    now: float

    def add_job(
        self, id: str, name: str, status: str, run: Path | None = None, **more: object
    ) -> None:
        """A job; one that is running has its run's folder without a summary."""
        row = JobRow(id=id, name=name, config="", status=status, submitted_at=self.now - 7200)
        row.rounds = 12
        if run is not None:
            row.started_at = self.now - 3600
            row.config = (run / "config.toml").read_text("utf-8")
            shutil.copytree(run, self.home.jobs / id)
            if status in ("running", "paused"):
                (self.home.jobs / id / "summary.json").unlink()
        for key, value in more.items():
            setattr(row, key, value)
        with self.state.transaction() as session:
            session.add(row)

    def add_witness(self, name: str, key: bytes, *, job: str, behind: int, at: float) -> None:
        """A witness that is asked, and what it cosigned last of one job's ledger."""
        private = Ed25519PrivateKey.from_private_bytes(key)
        public = private.public_key().public_bytes_raw()
        vkey = VerifierKey(name=name, algorithm=COSIGNATURE_V1, public=public)
        with self.home.settings_file.open("a", encoding="utf-8") as settings:
            settings.write(f'\n[[witnesses]]\nurl = "https://{name}/"\nkey = "{vkey}"\n')
        run = RunFolder(self.home.jobs / job)
        view = read_ledger(run.ledger)
        size = view.lines - behind
        text = Checkpoint(origin=view.origin, size=size, root=view.tree.root(size)).text
        log = sign_note(text, name=view.origin, key=private)
        mine = cosign(text, name=name, key=private, timestamp=int(at))
        head = CosignedHead(witness=vkey, note=SignedNote(text=text, signatures=(log, mine)))
        known = read_cosigned(run.cosigned) if run.cosigned.exists() else []
        write_cosigned(run.cosigned, [*known, head])

    def hold(self, text: str) -> None:
        """Have no job run."""
        with self.state.transaction() as session:
            session.merge(HoldRow(key="restored", text=text, at=self.now))


def make_scene(folder: Path, runs: list[Path], *, now: float = NOW) -> Scene:
    """Six devices, of which four are connected, and four jobs.

    Args:
        folder: a new folder, which becomes the coordinator's.
        runs: folders of two finished runs.
        now: seconds since 1970.
    """
    home = Home.create(folder, hosts=["fl.example.org"], epsilon=12.0)
    scene = Scene(home=home, state=State.open(home.path), fleet=Fleet(), now=now)
    with scene.state.transaction() as session:
        for number, name in enumerate(_NAMES, start=1):
            session.add(
                NodeRow(
                    id=number,
                    name=name,
                    identity=bytes([number]) * 32,
                    status="active",
                    enrolled_at=now - 90 * _DAY,
                    last_seen=now - 40 if number < 5 else now - 3.2 * 3600 * number,
                    version="0.1.0",
                    labels="ward europe" if name.startswith("clinic") else "lab",
                )
            )
            session.flush()
            days = 9 if name == "clinic-west" else 250 + number
            session.add(
                CertificateRow(serial=name, node=number, der=b"", expires_at=now + days * _DAY)
            )
        session.add(RosterRow(version=7, statement=b"", signature=b""))
        retired = NodeRow(
            id=9, name="clinic-old", identity=bytes(32), status="revoked", enrolled_at=now - _DAY
        )
        session.add(retired)
    for number in range(1, 5):
        scene.fleet.open(Link(node=number, version="0.1.0"))
    ended, going = runs
    scene.add_job("5b1c09aa71d2", "triage-v1", "completed", ended, round=12, spent=0.97)
    scene.state.update_job("5b1c09aa71d2", ended_at=now - 1800)
    scene.add_job("0de2f3c4a911", "triage-v2", "running", going, round=12, spent=5.03, promised=8.0)
    scene.state.update_job("0de2f3c4a911", rounds=40, stage="upload")
    waiting = "waiting: 4 of 6 connected (lab-basel, lab-turin away), needs 5, until 19:20:00"
    scene.add_job("77a0c4be1f55", "frailty-score", "waiting", stage=waiting)
    reason = "the policy of lab-basel allows no cohort below 8; this job's is 5"
    with scene.state.transaction() as session:
        for node, round, text in (
            (5, 0, reason),
            (2, 7, "on battery: conditions allow mains only"),
        ):
            session.add(
                RefusalRow(
                    job="0de2f3c4a911",
                    node=node,
                    cause="policy",
                    round=round,
                    reason=text,
                    count=1 + round // 3,
                    at=now - 300 - node,
                )
            )
    for key, (name, behind) in enumerate(
        (("witness.uni-basel.example", 0), ("witness.ngo.example", 6))
    ):
        scene.add_witness(
            name, bytes([key]) * 32, job="0de2f3c4a911", behind=behind, at=now - 60 - 400 * key
        )
    return scene
