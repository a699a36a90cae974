"""Every crash leaves the truth or worse."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fedsys.errors import LedgerError
from fedsys.privacy import LedgerView, read_ledger, replay
from fedsys.privacy.plan import PrivacyPlan
from tests.fedsys.privacy.ledger.ledgers import reopen, write_run


def test_any_torn_tail_is_cut_off(tmp_path: Path, plan: PrivacyPlan) -> None:
    """The file cut at every byte of its last lines: it opens, and nothing acknowledged is lost."""
    write_run(tmp_path, plan, close=False)
    ledger, private = tmp_path / "ledger.jsonl", tmp_path / "private.jsonl"
    whole, hidden = ledger.read_bytes(), private.read_bytes()
    last_two = whole[:-1].rfind(b"\n", 0, whole[:-1].rfind(b"\n")) + 1
    last = whole[:-1].rfind(b"\n") + 1
    step = max(1, (len(whole) - last_two) // 60)
    for cut in {*range(last_two, len(whole), step), last_two, last, last + 1, len(whole) - 1}:
        ledger.write_bytes(whole[:cut])
        private.write_bytes(hidden)
        with (
            pytest.raises(LedgerError, match="unfinished")
            if cut not in (last_two, last)
            else contextlib.nullcontext()
        ):
            read_ledger(ledger)
        with reopen(tmp_path) as opened:
            assert opened.view is not None
            _, spent = replay(opened.view, opened.private_rounds)
            assert opened.next_round == 6  # round 5's private line is there: never used again
        view = read_ledger(ledger)
        reserved = 5 if cut >= last else 4
        assert len(view.rounds) == reserved
        if reserved == 5:
            assert view.rounds[-1].outcome is None
            # the lost round is charged at its worst to everybody
            assert spent.server is not None
            full = _charged(plan, tmp_path, whole, hidden)
            assert spent.server >= full


def _charged(plan: PrivacyPlan, folder: Path, whole: bytes, hidden: bytes) -> float:
    path = folder / "whole.jsonl"
    path.write_bytes(whole)
    rounds = {body["round"]: body for body in map(json.loads, hidden.splitlines())}
    server = replay(read_ledger(path), rounds)[1].server
    path.unlink()
    assert server is not None
    return server


_JOB = """
import os, signal, sys
from pathlib import Path
from fedsys.privacy import AesCtrStream, Ledger, Signer, ledger_header, make_plan
from tests.fedsys.privacy.plans import FORTY_ROUNDS
import fedsys.durable as durable

folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
steps = 0

def dying(call):
    def wrapper(*args):
        global steps
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if call is os.write and steps + 1 == fatal:   # half of it reaches the file
            call(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return wrapper

class DyingOs:
    write = staticmethod(dying(os.write))
    fsync = staticmethod(dying(os.fsync))
    def __getattr__(self, name):
        return getattr(os, name)

durable.os = DyingOs()
plan = make_plan(**FORTY_ROUNDS)
signer = Signer.generate(entropy=AesCtrStream((1).to_bytes(32, "big")))
ledger = Ledger.create(folder / "ledger.jsonl", folder / "private.jsonl", signer=signer,
                       header=ledger_header(plan))
for number in (1, 2):
    ledger.reserve(number, {"event": plan.event().to_json()})
    print(f"invited {number}", flush=True)
    cohort = list(range(10 * number, 10 * number + 60))
    ledger.commit(number, {}, sampled=cohort, survivors=cohort)
    print(f"released {number}", flush=True)
print("finished", flush=True)
"""


def _killed(folder: Path, fatal: int) -> list[str]:
    """What a job that dies at its ``fatal``-th write or flush told the outside before."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_JOB), str(folder), str(fatal)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[4],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.slow
def test_kill_minus_nine_at_every_step(tmp_path: Path) -> None:
    """No invitation without a durable reserve, no release without a durable commit, no round
    forgotten, no number used twice: wherever the process dies."""
    fatal = 1
    while True:
        folder = tmp_path / str(fatal)
        folder.mkdir()
        told = _killed(folder, fatal)
        _check_after_a_kill(folder, told)
        if told and told[-1] == "finished":
            break
        fatal += 1
    assert fatal > 12


def test_kill_minus_nine_between_private_line_and_commit(tmp_path: Path) -> None:
    """One of the points of the test above, always run: steps 1-4 open, 5-6 reserve, 7.. commit."""
    seen = set()
    for fatal in (6, 9, 10):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        told = _killed(folder, fatal)
        seen.add(tuple(told))
        _check_after_a_kill(folder, told)
    assert seen


def _check_after_a_kill(folder: Path, told: list[str]) -> None:
    invited = [int(line.split()[1]) for line in told if line.startswith("invited")]
    released = [int(line.split()[1]) for line in told if line.startswith("released")]
    path = folder / "ledger.jsonl"
    try:
        view: LedgerView = read_ledger(path, allow_torn=True)
    except LedgerError:
        assert not told  # nothing was promised before the header was durable
        return
    reserved = {record.round for record in view.rounds}
    committed = {record.round for record in view.rounds if record.outcome == "commit"}
    assert set(invited) <= reserved
    assert set(released) <= committed
    private_path = folder / "private.jsonl"
    if not private_path.exists():
        assert not told
        return
    with reopen(folder) as ledger:
        assert ledger.view is not None
        accountant, spent = replay(ledger.view, ledger.private_rounds)
        assert accountant.rounds == len(reserved)
        assert ledger.next_round > max([0, *invited, *reserved])
        _, private = replay(ledger.view, {})
        assert private.server is not None
        assert spent.server is not None
        assert private.server >= spent.server  # unknown cohorts cost more, never less
    assert read_ledger(path).resumes
