"""``fedsys audit RUN --empirical``: what a run's planted canaries say about its claimed epsilon.

`fedsys simulate --canaries M` leaves ``canaries.jsonl`` in its separate, unreleased run and the
hash of the audit's protocol in the ledger's header, before it trains. Six tests are run as that
protocol says (`fedsys.audit.canary_scores`, `fedsys.audit.canaries`). Each either *refutes* the
claim, or *holds*, or has *no power*: where a run without any noise would pass as well, passing is
no evidence. The probability that any of them refutes an honest run is at most `FALSE_ALARM`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsys.audit.canaries import fdp_bound, one_run_bound
from fedsys.audit.canary_claim import Claimed, claimed_of, score_law
from fedsys.audit.canary_outcome import CANARIES, CanaryOutcome, read_canaries
from fedsys.audit.canary_protocol import FALSE_ALARM, TESTS, Coins, commitment_to
from fedsys.audit.canary_scores import noise_at_most, one_shot_estimate
from fedsys.audit.canary_tests import WEAKENED, Battery, Finding, Power
from fedsys.audit.page import PageMaker
from fedsys.audit.rederive import Audit, examine_with_page, result_of
from fedsys.audit.spending import Spending
from fedsys.audit.wording import claim, epsilon_text, plain, value_text
from fedsys.errors import AuditInputError, LedgerError
from fedsys.privacy import LedgerView, PrivacyPlan, events_of, load_public_key
from fedsys.records import AuditResult, Claim

__all__ = ["CANARIES", "CLAIMS", "audit_canaries"]

CLAIMS = {
    "chi-square": "Canaries left out against the claimed noise (chi-square)",
    "kolmogorov-smirnov": "Canaries left out against the claimed noise (Kolmogorov-Smirnov)",
    "one-run": "Empirical lower bound on epsilon (one-run)",
    "f-dp": "Empirical lower bound on epsilon (f-DP one-run)",
    "gaussian-scores": "Empirical lower bound on epsilon (Gaussian scores)",
    "one-shot": "Empirical lower bound on epsilon (one-shot)",
}
"""Name of each test's claim."""

_SOURCES = {
    "chi-square": "Anderson 1955, chi-square",
    "kolmogorov-smirnov": "Birnbaum and Tingey 1951, one-sided",
    "one-run": "Steinke, Nasr, Jagielski 2023",
    "f-dp": "Mahloujifar, Melis, Chaudhuri 2024",
    "gaussian-scores": "noncentral t, Johnson and Welch 1940",
    "one-shot": "Andrew et al. 2024, as a noncentral t",
}
_WORD = "the party that planted the canaries"
_SECOND = "canaries bound epsilon from below: passing proves nothing beyond the stated power"


def audit_canaries(
    run: Path, *, key: str | None = None, page: PageMaker | None = None
) -> AuditResult:
    """The audit of a run, plus what its canaries refute.

    Args:
        run: a folder that ``fedsys simulate --canaries M`` made.
        key: as for `audit_run`.
        page: as for `audit_run`.

    Raises:
        AuditInputError: there is no such run, or it has no canaries.
        LedgerError: ``key`` is not a public key.
    """
    pinned = None if key is None else load_public_key(key)
    audit = examine_with_page(run, pinned, page=page)
    path, view = run / CANARIES, audit.evidence.ledger.value
    planted = path.exists() or path.is_symlink()
    if not planted and (view is None or view.header.get("canaries") is None):
        raise AuditInputError(
            f"{plain(run)}: no canaries were planted in this run; plant some in a separate, "
            "unreleased one with `fedsys simulate --canaries M`"
        )
    result = result_of(run, audit, pinned)
    return dataclasses.replace(
        result, claims=(*result.claims, *_claims(path, audit)), notes=(*result.notes, _SECOND)
    )


def _claims(path: Path, audit: Audit) -> list[Claim]:
    view, spending, plan = audit.evidence.ledger.value, audit.spending, audit.plan
    try:
        outcome = read_canaries(path)
    except (LedgerError, OSError) as error:
        return [_belonging(False, "unreadable", str(error))]
    if view is None or spending is None or plan is None:
        return [_belonging(None, outcome.ledger_head, "the ledger cannot be accounted for")]
    own = outcome.ledger_head == view.open_head and outcome.protocol.dimension == plan.dimension
    claims = [_belonging(own, outcome.ledger_head, view.open_head)]
    if not own:
        return claims
    claimed = _claimed(audit, outcome, view, spending, plan)
    problem = _unregistered(outcome, view, claimed)
    claims.append(_registered(problem, outcome, view))
    battery = Battery(claimed, outcome.protocol)
    power = battery.power()
    findings = battery.findings(outcome.found)
    words = _Words(battery, outcome)
    claims += [
        _verdict(test, findings[test], power, words, registered=problem is None) for test in TESTS
    ]
    claims.append(_power_claim(power, battery))
    return claims


def _claimed(
    audit: Audit, outcome: CanaryOutcome, view: LedgerView, spending: Spending, plan: PrivacyPlan
) -> Claimed:
    """What the ledger's rounds claim, with the law of scores from those that were committed."""
    committed = [
        (record.round, event)
        for record, event in events_of(view, plan)
        if record.outcome == "commit"
    ]
    law = score_law(plan, committed, reserved=len(view.rounds), slack=outcome.slack)
    config = audit.evidence.config.value
    plain_sum = config is not None and (
        config.get("server.strategy") == "fedavg"
        and config.get("server.learning_rate") == 1.0
        and config.get("server.momentum") == 0.0
    )
    return claimed_of(
        plan,
        spending.accountant.outsider.steps(),
        epsilon=spending.spent.outsider,
        # any other server step would weight the rounds' noise; the law counts each round once
        law=law if plain_sum else None,
    )


def _belonging(holds: bool | None, claimed: str, rederived: str) -> Claim:
    return claim(
        "Canaries of this run",
        holds,
        claimed=value_text(claimed),
        rederived=rederived,
        by=f"the ledger head in {CANARIES}",
        rests_on=_WORD,
    )


# -- registration ---------------------------------------------------------------------------------


def _unregistered(outcome: CanaryOutcome, view: LedgerView, claimed: Claimed) -> str | None:
    """Why this is not the protocol that was registered before training; None if it is."""
    stated, protocol = view.header.get("canaries"), outcome.protocol
    if stated is None:
        return "not registered: the ledger's header names no protocol"
    if stated != protocol.digest:
        return f"not the header's protocol: {protocol.digest}"
    if commitment_to(outcome.seed) != protocol.commitment:
        return "the seed is not the one that the protocol commits to"
    if (Coins.included_by(outcome.seed, protocol.canaries) != outcome.found.included).any():
        return "the included canaries are not those that the seed's coins select"
    if protocol.false_alarm(claimed.noise_distance) > FALSE_ALARM * (1 + 1e-9):
        return f"its tests refute honest runs with probability above {FALSE_ALARM:g}"
    return None


def _registered(problem: str | None, outcome: CanaryOutcome, view: LedgerView) -> Claim:
    return claim(
        "Canary protocol",
        problem is None,
        claimed=f"{value_text(view.header.get('canaries'))} in the ledger's header",
        rederived=problem
        or f"registered before training; by the committed seed's coins "
        f"{len(outcome.found.inside)} of {outcome.protocol.canaries} canaries are in",
        by=f"the hash of the protocol in {CANARIES}, and redrawing the coins",
        rests_on=f"{_WORD}, for the scores",
    )


# -- verdicts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Words:
    """What each test observed, in one line."""

    battery: Battery
    outcome: CanaryOutcome

    def of(self, test: str) -> str:
        lines: dict[str, Callable[[], str]] = {
            "chi-square": self._chi_square,
            "kolmogorov-smirnov": self._kolmogorov_smirnov,
            "one-run": self._one_run,
            "f-dp": self._fdp,
            "gaussian-scores": lambda: self._separation("gaussian-scores"),
            "one-shot": self._one_shot,
        }
        return lines[test]()

    def _chi_square(self) -> str:
        law, level = self.battery.claimed.law, self.battery.protocol.level
        if law is None:
            return ""
        ratio = noise_at_most(self.outcome.found.outside, law, level)
        return (
            f"the noise is at most {ratio:.3g} times the claimed noise, from "
            f"{len(self.outcome.found.outside)} scores"
        )

    def _kolmogorov_smirnov(self) -> str:
        return f"magnitudes of {len(self.outcome.found.outside)} scores"

    def _one_run(self) -> str:
        protocol, found = self.battery.protocol, self.outcome.found
        correct = self.battery.correct("one-run", found)
        bound = one_run_bound(
            canaries=protocol.canaries,
            guesses=protocol.guesses,
            correct=correct,
            delta=protocol.one_run_delta,
            level=protocol.level,
        )
        return (
            f"at least {epsilon_text(bound)} at delta {protocol.one_run_delta:.2g}: "
            f"{self._guessed(correct, protocol.guesses)}, {self.battery.critical[0]} would refute"
        )

    def _fdp(self) -> str:
        protocol, found = self.battery.protocol, self.outcome.found
        correct = self.battery.correct("f-dp", found)
        bound = fdp_bound(
            canaries=protocol.canaries,
            guesses=protocol.fdp_guesses,
            correct=correct,
            delta=self.battery.claimed.delta,
            level=protocol.level,
        )
        critical = self.battery.critical[1]
        return (
            f"at least {epsilon_text(bound)} if Gaussian: "
            f"{self._guessed(correct, protocol.fdp_guesses)}, {critical} would refute"
        )

    def _guessed(self, correct: int, guesses: int) -> str:
        canaries = self.battery.protocol.canaries
        return f"{correct} of {guesses} guesses right about {canaries} canaries"

    def _separation(self, test: str) -> str:
        battery, found = self.battery, self.outcome.found
        law, level = battery.claimed.law, battery.protocol.level
        if law is None:
            return ""
        separation = battery.separation(test, found)
        ratio = separation.noise_at_most(law, level)
        bound = battery.claimed.epsilon_at(ratio)
        return (
            f"at least {epsilon_text(bound)}: {len(found.inside)} canaries are separated from the "
            f"rest as by at most {ratio:.3g} times the claimed noise"
        )

    def _one_shot(self) -> str:
        found = self.outcome.found
        estimate = one_shot_estimate(
            found.inside / found.length,
            dimension=found.dimension,
            delta=self.battery.claimed.delta,
        )
        return f"{self._separation('one-shot')}; estimated {epsilon_text(estimate)}"


def _verdict(
    test: str, finding: Finding, power: Power, words: _Words, *, registered: bool
) -> Claim:
    """Refuted, no power, or holds; without registration no claim holds."""
    claimed, level = words.battery.claimed, words.battery.protocol.level
    holds: bool | None
    if finding.p_value is None:
        holds, seen = None, f"no power: {finding.why_not}"
    elif finding.p_value <= level:
        holds, seen = False, f"{words.of(test)}; {_p_text(finding.p_value)}"
    elif not power.catches(test):
        holds, seen = None, f"no power: not even a run without noise is refuted; {words.of(test)}"
    else:
        holds = True if registered else None
        seen = f"{words.of(test)}; {_p_text(finding.p_value)}; {_caught(power.by_test[test])}"
    law = claimed.law
    stated = f"noise of deviation {law.sigma:.4g} on each score" if law is not None else "noise"
    if CLAIMS[test].startswith("Empirical"):
        stated = f"at most {epsilon_text(claimed.epsilon)}"
    if test == "one-run" and words.battery.protocol.one_run_delta != claimed.delta:
        delta = words.battery.protocol.one_run_delta
        stated += f", {epsilon_text(claimed.epsilon_for(delta))} at delta {delta:.2g}"
    return claim(
        CLAIMS[test],
        holds,
        claimed=stated,
        rederived=seen,
        by=f"{_SOURCES[test]}; refuted at p <= {level:.2g}",
        rests_on=_WORD,
    )


def _p_text(p_value: float) -> str:
    return f"p = {p_value:.2g}" if p_value > 0 else "p < 1e-300"


def _caught(shares: tuple[float, ...]) -> str:
    return "caught: " + ", ".join(
        f"{_noise_text(weaker)} in {share:.0%}"
        for weaker, share in zip(WEAKENED, shares, strict=True)
    )


def _noise_text(weaker: float) -> str:
    return "no noise" if math.isinf(weaker) else f"noise divided by {weaker:g}"


def _power_claim(power: Power, battery: Battery) -> Claim:
    """How often weaker noise would have been caught: how much evidence passing is."""
    protocol = battery.protocol
    bound = protocol.false_alarm(battery.claimed.noise_distance)
    return claim(
        "Power of the empirical audit",
        None,
        claimed=f"honest runs are refuted with probability at most {FALSE_ALARM:g}",
        rederived=f"{_caught(power.by_any)} of runs; honest runs are refuted with probability at "
        f"most {bound:.3g} ({len(TESTS)} tests at {protocol.level:.3g} each, Bonferroni)",
        by="simulating the canaries' scores",
        rests_on="scores following their law under the claim",
    )
