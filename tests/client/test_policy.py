"""policy.toml, conditions, back-off."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from client.conditions import conditions, obstacle
from client.grpc_host import Backoff
from client.policy import ApprovedTask, Policy, QueryPolicy, own_noise
from fedsys.errors import ConfigError, MechanismError, PolicyRefusal
from fedsys.privacy.events import build_event
from fedsys.queries import parse


def test_a_fresh_policy_reads_back(tmp_path: Path) -> None:
    fresh = Policy.fresh("digits", ApprovedTask(sha256="ab", options={"hidden": 4}))
    assert (fresh.min_cohort, fresh.corrupt, fresh.colluders, fresh.epsilon) == (3, 0.1, 0, 10.0)
    path = tmp_path / "policy.toml"
    path.write_text(fresh.dump())
    assert Policy.load(path) == fresh


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epsilon = 'x'", "epsilon"),
        ("epsilom = 3.0", "epsilom"),
        ("when_unknown = 'perhaps'", "when_unknown"),
        ("[tasks.digits]\nsha = '1'", "tasks.digits"),
        ("epsilon =", "policy.toml"),
        ("epsilon = nan", "epsilon = nan: a limit is a number"),
        ("max_clip = nan", "max_clip = nan: a limit is a number"),
        ("corrupt = 1.0", "corrupt = 1"),
        ("corrupt = nan", "corrupt = nan"),
        ("colluders = -1", "colluders = -1"),
        ("min_threshold = 2", "min_threshold"),
        ("threads = 0", "threads = 0: input should be greater than or equal to 1"),
        ("nice = -5", "nice = -5: input should be greater than or equal to 0"),
        ("nice = 20", "nice = 20: input should be less than or equal to 19"),
        ("min_cohort = -1", "min_cohort = -1"),
        ("epsilon = 1" + "0" * 400, "epsilon"),
    ],
)
def test_a_wrong_policy_is_one_line_that_names_the_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        Policy.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["epsilon", "max_clip", "min_noise_multiplier", "min_own_noise", "corrupt"]
)
@pytest.mark.parametrize("value", ["nan", "-nan", "-1.0", "-inf"])
def test_a_limit_that_would_let_anything_pass_is_refused(
    tmp_path: Path, name: str, value: str
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f"{name} = {value}")
    with pytest.raises(ConfigError, match=rf"policy\.toml: {name} = -?(nan|1\.0|inf)"):
        Policy.load(path)


def test_a_number_that_is_none_passes_no_limit() -> None:
    policy = Policy(max_clip=1.0, min_noise_multiplier=1.0, min_own_noise=0.1, epsilon=1.0)
    nan = float("nan")
    for mechanism in (
        {"clip": nan, "noise_multiplier": 2.0},
        {"clip": 0.5, "noise_multiplier": nan},
    ):
        with pytest.raises(PolicyRefusal):
            policy.check_mechanism(mechanism)
    with pytest.raises(PolicyRefusal):
        policy.check_epsilon(others=0.0, after=nan)


@pytest.mark.parametrize(
    ("hours", "at", "holds"),
    [
        (("09:00-17:00",), "12:00", True),
        (("09:00-17:00",), "17:00", False),
        (("22:00-06:00",), "23:30", True),
        (("22:00-06:00",), "05:59", True),
        (("22:00-06:00",), "12:00", False),
        (("00:00-01:00", "12:00-13:00"), "12:30", True),
    ],
)
def test_hours(hours: tuple[str, ...], at: str, holds: bool) -> None:
    now = dt.datetime.combine(dt.date(2026, 1, 1), dt.time.fromisoformat(at))
    policy = Policy(hours=hours)
    found = conditions(policy, now=lambda: now)
    assert found[0].holds is holds
    assert (obstacle(policy, found) is None) is holds


def test_hours_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected a span"):
        conditions(Policy(hours=("nine to five",)))


@pytest.mark.parametrize("plugged", [True, False, None])
@pytest.mark.parametrize("unknown", ["allow", "refuse"])
def test_mains_may_be_unknown(plugged: bool | None, unknown: str) -> None:
    policy = Policy(only_on_mains=True, when_unknown=unknown)  # type: ignore[arg-type]
    found = conditions(policy, mains=lambda: plugged)
    allowed = plugged is True or (plugged is None and unknown == "allow")
    why = obstacle(policy, found)
    assert (why is None) is allowed
    if plugged is None and why is not None:
        assert "cannot tell" in why


@pytest.mark.parametrize(("busy", "allowed"), [(5.0, True), (80.0, False), (None, False)])
def test_idle(busy: float | None, allowed: bool) -> None:
    policy = Policy(only_idle=True)
    assert (obstacle(policy, conditions(policy, busy=lambda: busy)) is None) is allowed


def test_own_noise() -> None:
    assert _noise_of("distributed-gaussian", noise_multiplier=2.0) == pytest.approx(0.5)
    server: dict[str, Any] = {"guarantee": "server", "min_survivors": 9, "colluders": 5}
    assert _noise_of("distributed-gaussian", noise_multiplier=2.0, **server) == pytest.approx(1.0)
    assert _noise_of("local-gaussian", noise_multiplier=3.0) == pytest.approx(3.0)
    assert _noise_of("central-gaussian", noise_multiplier=3.0) == 0.0
    assert _noise_of("distributed-gaussian", noise_multiplier=3.0, noise="once") == 0.0
    assert _noise_of("distributed-gaussian", noise_multiplier=3.0, encoding="narrow") > 0.75
    with pytest.raises(MechanismError, match="unknown mechanism"):
        own_noise({"mechanism": "made-up", "noise_multiplier": 3.0})


def _noise_of(name: str, **changes: Any) -> float:
    choices: dict[str, Any] = {
        "dimension": 10,
        "clip": 0.5,
        "expected_cohort": 10,
        "population": 100,
        "cap": 16,
        "min_survivors": 1,
    }
    return own_noise(build_event(name, **choices | changes).to_json())


def test_waits_double_up_to_a_limit_with_jitter() -> None:
    longest = Backoff(first=1.0, most=10.0, draw=lambda: 1.0)
    assert [longest.next() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    longest.reset()
    assert longest.next() == 1.0
    shortest = Backoff(first=1.0, most=10.0, draw=lambda: 0.0)
    assert [round(shortest.next(), 3) for _ in range(3)] == [0.1, 0.2, 0.4]
    drawn = Backoff()
    assert all(0 < drawn.next() <= 60 for _ in range(100))


@pytest.mark.parametrize(
    ("kind", "column", "allowed"),
    [
        ("query", "age", True),
        ("query", "wage", False),
        ("query", "accuracy", False),
        ("evaluate", "accuracy", True),
        ("evaluate", "age", True),
        ("evaluate", "wage", False),
    ],
)
def test_an_evaluation_reads_no_column_that_a_query_may_not(
    kind: str, column: str, allowed: bool
) -> None:
    """Otherwise a query would only have to call itself an evaluation."""
    asked = parse([{"ask": "mean", "name": "m", "column": column, "low": 0, "high": 1}])
    policy = QueryPolicy(columns=("age",))
    if allowed:
        policy.check(kind, asked)
        return
    with pytest.raises(PolicyRefusal, match=f"reads column '{column}'"):
        policy.check(kind, asked)
