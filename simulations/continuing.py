"""A run that starts from another run's model: what it takes over, and how their ledgers are linked.

The new run has a ledger of its own. Its header names the head of the other's (``start``), and its
``tuning`` states the rounds of that run and of all before it, so that summary, report, audit and
export state what all of them cost together. Where the other run is in a population's folder, the
new one joins that folder and its budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fedsys.audit.population import is_population
from fedsys.audit.preparation import PREPARATION
from fedsys.audit.rederive import Audit, counted_part, examine
from fedsys.audit.tuning import Before
from fedsys.config import Config, Tuning, validate
from fedsys.config.overrides import apply
from fedsys.config.tuning import TuningPart
from fedsys.errors import ConfigError, LedgerError, RunFolderError
from fedsys.privacy import LedgerView, PrivacyPlan, Signer, plan_of
from fedsys.privacy.accounting.adding import (
    MOST_STEPS,
    Part,
    cost_together,
    promised_part,
    replaces,
    together,
)
from fedsys.privacy.ledger import read_header
from fedsys.run_folder import RunFolder
from server.checkpoint import Checkpoint
from server.job_opening import reached

__all__ = ["Start", "continued"]

_PROMISE = frozenset({"Randomness", PREPARATION})
"""Claims without which a run promises nothing, and has a model all the same."""
_GOES_ON = ("task", "local", "server", "population")
"""Sections that must be unchanged for the strategy's and the clients' state to mean the same."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A finished run whose model another one starts from.

    Attributes:
        path: its folder.
        view: its closed ledger.
        config: its configuration.
        checkpoint: its last committed round.
    """

    path: Path
    view: LedgerView
    config: Config
    checkpoint: Checkpoint
    _audit: Audit = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> Start:
        """Audit a finished run and read what it reached; nothing that it names is imported.

        Raises:
            AuditInputError: it is not a run's folder.
            RunFolderError: its audit fails, or it is not over.
            ConfigError: it trained no model.
        """
        audit = examine(path, None)
        failed = {claim.name for claim in audit.claims if claim.holds is False}
        view = audit.evidence.ledger.value
        if failed - _PROMISE or view is None or audit.plan is None or audit.spending is None:
            raise RunFolderError(
                f"--from {path}: its audit fails ({', '.join(sorted(failed))}); see `fedsys audit`"
            )
        if view.closed is None:
            raise RunFolderError(
                f"--from {path}: that run is not over; finish it with `fedsys simulate --resume "
                f"{path}`"
            )
        folder = RunFolder(path)
        if view.header.get("kind", "train") != "train":
            raise ConfigError(f"--from {path}: its round asked questions, and has no model")
        config = folder.signed_config(view.header)
        return cls(path=path, view=view, config=config, checkpoint=reached(folder), _audit=audit)

    @property
    def population(self) -> Path | None:
        """The population's folder that it is in; None where it is in none."""
        parent = self.path.resolve().parent
        return parent if is_population(parent) else None

    def goes_on_in(self, config: Config) -> bool:
        """Whether a job is more rounds of this one: of its task, clients, training and strategy."""
        same = all(getattr(config, name) == getattr(self.config, name) for name in _GOES_ON)
        return same and config.job.seed == self.config.job.seed

    def checkpoint_for(self, config: Config) -> Checkpoint:
        """The state that a job begins with: the model, and where the job goes on, the strategy's
        state and adapted clipping norms. Noise of one run is never correlated with another's."""
        on, was, now = self.goes_on_in(config), self.config.privacy, config.privacy
        adaptive = ("adaptive_quantile", "adaptive_rate", "adaptive_layers")
        alike = all(getattr(was, key) == getattr(now, key) for key in adaptive)
        return Checkpoint(
            round=0,
            weights=self.checkpoint.weights,
            strategy=self.checkpoint.strategy if on else {},
            clipping=self.checkpoint.clipping if on and alike else None,
        )

    def require_same_model(self, weights: int, frozen_sha256: str | None) -> None:
        """Refuse a job whose model has another form.

        Args:
            weights: number of the job's trained weights.
            frozen_sha256: binds what of its model is not trained, and its form.

        Raises:
            ConfigError: it has.
        """
        there = len(self.checkpoint.weights)
        if there != weights:
            raise ConfigError(
                f"--from {self.path}: its model has {there} weights, and this job's {weights}"
            )
        bound = self.view.header.get("frozen_sha256")
        if bound is not None and bound != frozen_sha256:
            raise ConfigError(
                f"--from {self.path}: its model's frozen weights or buffers, or the names of its "
                f"parameters, are not those of this job's task"
            )

    def stated_in(self, config: Config, plan: PrivacyPlan) -> Tuning:
        """``[tuning]`` of a job that starts here: all runs before it, this one included.

        Raises:
            ConfigError: the runs protect another unit, or define neighbours differently.
        """
        own, stated = plan_of(self.view.header), config.tuning
        if self.view.head in stated.heads:
            return stated  # a search whose trial this is has counted it
        _require_alike(self.path, own, plan)
        before = Tuning.model_validate(_finite(self.view.header.get("tuning") or {}))
        missing = [head for head in before.heads if head not in stated.heads]
        known = [stated] if before.runs and not missing else [before, stated]
        parts = [_part(each) for each in known if each.runs]
        parts.append(self._own_part(own))
        epsilons = [_epsilon(each) for each in known if each.runs]
        heads = [*(head for each in known for head in each.heads), self.view.head]
        total, delta, part = _added(parts, [*epsilons, self._spent(own)], known, own.delta)
        return Tuning(
            runs=sum(each.runs for each in known) + 1,
            epsilon=total,
            delta=delta,
            heads=heads,
            part=part,
        )

    def notice(self, config: Config, plan: PrivacyPlan) -> str:
        """One line for people: where the job starts, and what all runs may cost together."""
        goes_on = self.goes_on_in(config)
        line = f"starts from the model that {self.path} reached in round {self.checkpoint.round}"
        line += ", with its strategy's state" if goes_on and self.checkpoint.strategy else ""
        if not plan.protected:
            return line
        before = config.tuning
        part = _part(before)
        runs = f"{before.runs} run{'s' if before.runs != 1 else ''} before it"
        if part is None:
            spent = _epsilon(before)
            if math.isinf(spent):
                return f"{line}; NO TOTAL: {runs} promise nothing for these clients"
            return f"{line}; {runs} cost an outsider's epsilon of {spent:.4g}, which adds up"
        total, delta = cost_together([part, promised_part(plan, "outsider")])
        return (
            f"{line}; with {runs}, all of its rounds come to epsilon {total:.4g} at delta "
            f"{delta:g} for an outsider"
        )

    def _spent(self, plan: PrivacyPlan) -> float:
        spending = self._audit.spending
        promises = plan.protected and self._audit.withheld is None
        if not promises or spending is None or self.view.header.get("reproducible") is not False:
            return math.inf
        if self.view.ended_early:
            return cost_together([promised_part(plan, "outsider")])[0]
        return spending.spent.outsider

    def _own_part(self, plan: PrivacyPlan) -> Part | None:
        return None if math.isinf(self._spent(plan)) else counted_part(self._audit)


def continued(path: Path, overrides: Iterable[str]) -> Config:
    """The configuration of a finished run of this coordinator's, for more rounds of the same job.

    Args:
        path: its folder.
        overrides: ``section.key=value`` each.

    Raises:
        FedsysError: there is no such run, another key signed it, or a key is not valid.
    """
    folder = RunFolder.open(path)
    try:
        header = read_header(folder.ledger, key=Signer.load_or_create().public_key)
    except LedgerError as error:
        raise RunFolderError(
            f"--from {path}: {error}; a run of somebody else's goes on under a CONFIG of your own"
        ) from None
    tree = folder.signed_config(header).model_dump(exclude_none=True)
    tree.pop("tuning", None)
    tree["job"].pop("start", None)
    apply(overrides, tree)
    return validate(tree)


def _finite(stated: dict[str, object]) -> dict[str, object]:
    """A header's statement as ``[tuning]`` writes it, in which an infinite epsilon is a number."""
    Before.of(stated)
    return {key: math.inf if value == "inf" else value for key, value in stated.items()}


def _require_alike(path: Path, own: PrivacyPlan, plan: PrivacyPlan) -> None:
    if not (own.protected and plan.protected):
        return
    alike = replaces(own, "outsider") == replaces(plan, "outsider")
    if own.unit != plan.unit or not alike:
        raise ConfigError(
            f"--from {path}: that run protects another unit, or defines neighbours differently "
            f"(replace, or add or remove), than this job: their epsilons do not add up; use its "
            f"privacy.unit and cohort.sampling"
        )


def _part(stated: Tuning) -> Part | None:
    return None if stated.part is None else Part.from_json(stated.part.model_dump())


def _epsilon(stated: Tuning) -> float:
    return math.inf if stated.epsilon is None else stated.epsilon


def _added(
    parts: list[Part | None], epsilons: list[float], known: list[Tuning], delta: float
) -> tuple[float, float, TuningPart | None]:
    """Epsilon and delta of all runs before, and their rounds where those compose."""
    composed = [part for part in parts if part is not None]
    if len(composed) == len(parts):
        epsilon, at = cost_together(composed)
        part = together(composed).to_json()
        if math.isfinite(epsilon) and len(part["steps"]) <= MOST_STEPS:
            return epsilon, at, TuningPart(**part)
    deltas = [each.delta or 0.0 for each in known if each.runs]
    return math.fsum(epsilons), math.fsum([*deltas, delta]), None
