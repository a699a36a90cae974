"""Several runs on one population cost what their losses add up to."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import pld_privacy_accountant

from fedsys.audit import audit_run, compose, composition
from fedsys.audit.rederive import examine
from fedsys.errors import AuditInputError
from fedsys.privacy import VIEWS
from fedsys.privacy.accounting.costs import server_step, together_step
from fedsys.privacy.accounting.exact_gaussian import gaussian_epsilon
from fedsys.privacy.accounting.from_ledger import plan_of
from fedsys.privacy.accounting.pld import gaussian_pld_epsilon
from fedsys.privacy.ledger import read_private
from fedsys.release.publication import publish_run
from simulations import harness
from tests.fedsys.audit.conftest import job
from tests.fedsys.audit.forge import edit_json, entries


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return harness.run(job("privacy.noise_multiplier=0.9"), out=tmp_path / "second").folder


def test_two_runs_cost_what_their_rounds_cost_together(run: Path, second: Path) -> None:
    result = compose([run, second])
    assert result.passed
    plans = [plan_of(entries(folder)[0][1]) for folder in (run, second)]
    expected = gaussian_pld_epsilon(
        {(plan.noise_multiplier, plan.rate): plan.rounds for plan in plans},
        1e-5 - sum(1e-5 - plan.delta_of("outsider") for plan in plans),
    )
    total = result.curve[-1].spent
    alone = [audit_run(folder).curve[-1].spent for folder in (run, second)]
    assert total.outsider == pytest.approx(expected)
    assert max(part.outsider for part in alone) < total.outsider
    assert total.outsider < sum(part.outsider for part in alone)
    assert result.delta == pytest.approx(1e-5)
    assert result.details["delta"] == dict.fromkeys(VIEWS, pytest.approx(1e-5))
    for view in ("participant", "server"):
        spent = [part.of(view) or 0.0 for part in alone]
        assert max(spent) < (total.of(view) or 0.0) < sum(spent)


def test_the_participant_s_total_is_that_of_the_most_meetings_in_each_run(
    run: Path, second: Path
) -> None:
    """Against dp-accounting: the rounds that two clients shared most often count unamplified."""
    delta, accountant = (
        1e-5,
        pld_privacy_accountant.PLDAccountant(
            dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
        ),
    )
    for folder in (run, second):
        plan = plan_of(entries(folder)[0][1])
        delta -= plan.delta - plan.delta_of("participant")
        private, _ = read_private(folder / "private.jsonl")
        met = Counter(
            pair for line in private.values() for pair in combinations(sorted(line["sampled"]), 2)
        )
        shared = max(met.values())
        together = dp_accounting.GaussianDpEvent(together_step(plan.event()).multiplier)
        apart = dp_accounting.GaussianDpEvent(plan.noise_multiplier)
        accountant.compose(together, shared)
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(plan.rate, apart), plan.rounds - shared
        )
    total = compose([run, second]).curve[-1].spent.participant
    assert total == pytest.approx(accountant.get_epsilon(delta), abs=0.01)


def test_the_server_s_total_is_that_of_each_run_s_worst_client(run: Path, second: Path) -> None:
    delta, worst = 1e-5, 0.0
    for folder in (run, second):
        plan = plan_of(entries(folder)[0][1])
        delta -= plan.delta - plan.delta_of("server")
        private, _ = read_private(folder / "private.jsonl")
        squares: Counter[int] = Counter()
        for line in private.values():
            multiplier = server_step(plan.event(), len(line["survivors"])).multiplier
            for client in line["survivors"]:
                squares[client] += multiplier**-2  # type: ignore[assignment]
        worst += max(squares.values())
    total = compose([run, second]).curve[-1].spent.server
    assert total == pytest.approx(gaussian_epsilon(delta, worst**-0.5))


def test_the_server_s_total_is_also_that_of_the_worst_client_over_all_runs(
    run: Path, second: Path
) -> None:
    """Against adding up each client's rounds by hand."""
    result = compose([run, second])
    total = result.details["server_by_client"]
    squares: dict[int, float] = {}
    delta = 1e-5
    for folder in (run, second):
        plan = plan_of(entries(folder)[0][1])
        delta -= plan.delta - plan.delta_of("server")
        private, _ = read_private(folder / "private.jsonl")
        for line in private.values():
            multiplier = server_step(plan.event(), len(line["survivors"])).multiplier
            for client in line["survivors"]:
                squares[client] = squares.get(client, 0.0) + multiplier**-2
    assert total == pytest.approx(gaussian_epsilon(delta, max(squares.values()) ** -0.5))
    assert total < (result.curve[-1].spent.server or 0.0)
    said = {claim.name: claim for claim in result.claims}
    assert (
        "same client in every run" in said["Total epsilon, server view, client by client"].rests_on
    )


def test_gaussian_runs_compose_as_loss_distributions(tmp_path: Path) -> None:
    multipliers = (1.0, 1.5)
    folders = [
        harness.run(
            job("privacy.mechanism=central-gaussian", f"privacy.noise_multiplier={z}"),
            out=tmp_path / str(z),
        ).folder
        for z in multipliers
    ]
    total = compose(folders).curve[-1].spent
    accountant = pld_privacy_accountant.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
    )
    delta = 1e-5
    for folder, multiplier in zip(folders, multipliers, strict=True):
        plan = plan_of(entries(folder)[0][1])
        delta -= plan.delta - plan.delta_of("outsider")
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(
                plan.rate, dp_accounting.GaussianDpEvent(multiplier)
            ),
            plan.rounds,
        )
    assert total.outsider == pytest.approx(accountant.get_epsilon(delta), abs=0.01)
    assert total.server == math.inf


def test_a_run_that_fails_its_own_audit_fails_the_total(run: Path, second: Path) -> None:
    edit_json(second, lambda body: body.update(rounds=2))
    result = compose([run, second])
    assert not result.passed
    assert [claim.name for claim in result.claims if claim.holds is False] == ["Run second"]


def test_published_runs_have_a_total_for_the_outsider(
    run: Path, second: Path, tmp_path: Path
) -> None:
    folders = [
        publish_run(folder, tmp_path / f"out-{folder.name}").path for folder in (run, second)
    ]
    total = compose(folders).curve[-1].spent
    assert total.outsider == pytest.approx(compose([run, second]).curve[-1].spent.outsider)
    assert total.participant is None
    assert total.server is None


def test_what_does_not_add_up_is_refused(run: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(AuditInputError, match="at least two"):
        compose([run])
    with pytest.raises(AuditInputError, match="same run"):
        compose([run, finished])
    other = harness.run(
        job("cohort.sampling=fixed", "privacy.noise_multiplier=2.0"), out=tmp_path / "fixed"
    ).folder
    with pytest.raises(AuditInputError, match="neighbours"):
        compose([run, other])
    (other / "ledger.jsonl").write_bytes(b"")
    with pytest.raises(AuditInputError, match="cannot be accounted"):
        compose([run, other])


def test_runs_that_leave_nothing_of_delta_are_added_with_their_deltas(
    run: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audits = [examine(folder, None) for folder in (run, second)]
    spent = [audit.spending.spent for audit in audits if audit.spending is not None]
    monkeypatch.setattr(composition, "cost_together", lambda _parts: (math.inf, 1e-5))
    for view in ("participant", "server"):
        added = sum(each.of(view) or 0.0 for each in spent)
        assert composition._together(audits, view) == pytest.approx((added, 2e-5))
    assert composition._together(audits, "outsider") == (math.inf, 1e-5)
