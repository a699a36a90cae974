"""What clients keep: counts with its round's commit, whatever crashes, and is kept from others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsys.audit import audit_run
from fedsys.config import Config
from fedsys.config.named_code import NamedCode
from fedsys.errors import FedsysError
from fedsys.privacy import read_ledger
from fedsys.release.publication import publish_run
from server.coordinator import Coordinator
from server.strategies import FedAvg
from simulations import harness
from simulations.client_states import NAME, ClientStates
from simulations.replay import replay

Configure = Callable[..., Config]
OWN = "tests.client.training.procedure.own"
KEPT = (
    f"local.procedure={OWN}:Counted",
    f"server.strategy={__name__}:Counting",
    "population.partition=iid",
    "population.clients=12",
    "cohort.expected=6",
    "rounds.count=4",
    "engine.path=auto",
    "privacy.mechanism=none",
    "privacy.clip=10",
    "evaluation.data=none",
)


class Counting(FedAvg):
    """FedAvg that is told how often its clients trained, and sends what it was told."""

    def __init__(self, options: Any) -> None:
        super().__init__(learning_rate=options.learning_rate)
        self.dimension, self.clients = options.dimension, options.clients
        self.told = np.zeros(1)

    def receive(self, sent: Any) -> None:
        self.told = self.told + sent["rounds"]

    def shared(self) -> dict[str, Any]:
        return {"told": self.told}

    def state(self) -> dict[str, Any]:
        return {"told": self.told.copy()}

    def load(self, state: Any) -> None:
        self.told = np.array(state["told"])


class Killed(BaseException):
    pass


def test_a_round_without_a_model_leaves_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after round 2 was trained and before it was committed: the replay, which trains
    rounds 1, 3 and 4 in one go, must come to the same sums."""
    finish = Coordinator.finish_round

    def dies(self: Coordinator, *args: Any, **more: Any) -> Any:
        if self.reserved == 2:
            raise Killed
        return finish(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "finish_round", dies)
        with pytest.raises(Killed):
            harness.run(configure(*KEPT), out=tmp_path / "run")
    run = tmp_path / "run"
    left = ClientStates(run / NAME)
    assert any(left.load(client, 3)["rounds"] == 2 for client in range(12) if left.load(client, 3))
    left.close()
    named = NamedCode(
        strategy=f"{__name__}:Counting", code=("tests.client.training.procedure.own:Counted",)
    )
    harness.resume(run, named=named)
    found = replay(run, named=named)
    assert (found.lost, found.replayed, found.difference) == (1, 3, None)
    assert audit_run(run).passed
    assert (run / NAME).stat().st_mode & 0o777 == 0o600
    publish_run(run, tmp_path / "public")
    assert not list((tmp_path / "public").glob(f"{NAME}*"))


def test_a_protected_run_pays_for_its_blocks_and_weights(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(
        *KEPT,
        "privacy.mechanism=distributed-gaussian",
        "privacy.noise_multiplier=1.0",
        "cohort.weighting=examples",
        "cohort.weight_cap=200",
        "cohort.sampling=fixed",
        "cohort.expected=12",
        "aggregation.dropout=0",
        "rounds.count=2",
    )
    run = harness.run(config, out=tmp_path / "run").folder
    plan = read_ledger(run / "ledger.jsonl").header["plan"]
    assert plan["dimension"] == 650 + 1 + 1
    assert plan["clip"] == 10
    assert audit_run(run).passed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("server.strategy=fedavg",), "does not take the blocks rounds"),
        (("privacy.clip=0.05",), r"privacy\.clip = 0\.05 bounds the update together"),
        (("engine.backend=ray",), r"engine\.backend = 'ray' with a local procedure"),
        (("privacy.adaptive_quantile=0.5", "privacy.mechanism=central-gaussian",
          "privacy.noise_multiplier=1"), r"privacy\.adaptive_quantile = 0\.5 with the blocks"),
        (("local.procedure=scaffold", "server.strategy=fedavg", "privacy.clip=100"),
         "does not take the blocks control"),
        (("cohort.weighting=examples",), r"needs cohort\.weight_cap"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(
    configure: Configure, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(FedsysError, match=message) as caught:
        harness.run(configure(*KEPT, *settings), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_states_are_of_rounds(tmp_path: Path) -> None:
    states = ClientStates(tmp_path / NAME)
    assert states.load(3, 1) == {}
    for number in (1, 2, 4):
        states.save(3, number, {"n": torch.tensor(float(number))})
        states.settle(number)
    other = ClientStates(tmp_path / NAME)  # as another process has it
    assert [other.load(3, number).get("n") for number in (4, 5)] == [2, 4]
    assert other.load(3, 2) == {}  # superseded twice, so dropped
    states.keep_only({1, 2})
    assert other.load(3, 9)["n"] == 2
    states.forget(2)
    assert other.load(3, 9) == {}
