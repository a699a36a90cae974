"""Whether a job's numbers fit its roster, before anybody is asked."""

from __future__ import annotations

from fedsys.config import Config
from fedsys.errors import FedsysError
from fedsys.privacy import PrivacyPlan
from fedsys.wire.roster import RosterStatement
from fedsys.wire.terms import Buffering
from secure_agg.committee import SUITE_NAMES
from server.rounds import params_for

__all__ = ["JobFailed", "buffering_of", "require_fit", "require_params"]


class JobFailed(FedsysError):
    """A job ends without a result that it was asked for; the message goes to the operator."""


def require_fit(config: Config, population: int) -> None:
    """Raise JobFailed unless a population of this size can run what is configured."""
    if config.job.reproducible:
        raise JobFailed(
            "job.reproducible = true draws noise from a seed, which is for simulations: devices "
            "never do; remove it"
        )
    if config.cohort.kind == "chosen":
        raise JobFailed(
            f"cohort.sampling = '{config.cohort.sampling}': code of your own chooses cohorts in "
            f"simulations; devices take part where cohorts are drawn: use 'poisson', 'fixed' or "
            f"'min-separation'"
        )
    if config.evaluation.clients:
        raise JobFailed(
            "evaluation.clients = true: figures of single clients are a simulation's view, and no "
            "epsilon covers them; leave it out, or ask devices with `fedsys query`"
        )
    wanted = config.population.clients
    if wanted is not None and wanted != population:
        raise JobFailed(
            f"population.clients = {wanted}, but {population} nodes are on the roster; leave "
            f"it out, or enrol and revoke nodes"
        )
    if config.cohort.expected > population:
        raise JobFailed(
            f"cohort.expected = {config.cohort.expected}, but {population} nodes are on the "
            f"roster; enrol more, or ask for fewer"
        )
    training = config.rounds.concurrency
    if training is not None and training > population:
        raise JobFailed(
            f"rounds.concurrency = {training}, but {population} nodes are on the roster; enrol "
            f"more, or have fewer train at a time"
        )
    if config.aggregation.protocol != "secure":
        raise JobFailed(
            f"aggregation.protocol = '{config.aggregation.protocol}' is for simulations; "
            f"devices take part in 'secure' only"
        )


def require_params(config: Config, plan: PrivacyPlan, roster: RosterStatement) -> None:
    """Raise unless secure aggregation can serve this job's cohorts, or epochs, from this roster."""
    buffering = buffering_of(config)
    size = config.cohort.expected if buffering is None else buffering.largest_epoch(plan)
    suite = SUITE_NAMES[config.aggregation.suite]
    params = params_for(plan, plan.build_mechanism(), roster.roster, size, suite=suite)
    if buffering is not None and params.min_included > plan.cap:
        raise JobFailed(
            f"rounds.buffer = {plan.cap}: of the {size} members of an epoch "
            f"{params.min_included - 2} may collude and be in one buffer; raise rounds.buffer to "
            f"{params.min_included}, or lower rounds.epoch or rounds.concurrency"
        )


def buffering_of(config: Config) -> Buffering | None:
    rounds = config.rounds
    if rounds.mode == "synchronous":
        return None
    return Buffering(
        concurrency=rounds.concurrency or 0,
        epoch=rounds.epoch,
        max_staleness=rounds.max_staleness,
    )
