"""``fedsys privacy``: the epsilon of given noise, the noise for a given epsilon, and plans."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsys.cli import privacy_plan
from fedsys.cli.privacy_options import (
    AsJson,
    Bits,
    Cohort,
    Colluders,
    Corrupt,
    Delta,
    Dimension,
    Dropout,
    Encoding,
    ExampleRate,
    Guarantee,
    MaxParticipations,
    Mechanism,
    MinSeparation,
    Participation,
    Population,
    Rate,
    Rounds,
    Sampling,
    Steps,
    options_of,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["app"]

app = typer.Typer(
    help="Privacy accounting without a run: epsilon, calibrate, plan.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_ANY_POPULATION = 1 << 40
_PLAN_OPTIONS = (
    "mechanism",
    "rounds",
    "delta",
    "encoding",
    "sampling",
    "participation",
    "guarantee",
    "colluders",
    "dropout",
    "corrupt",
    "max_participations",
    "min_separation",
    "example_rate",
    "steps",
)


def _job(
    rounds: Rounds,
    delta: Delta,
    sampling_rate: Rate = None,
    mechanism: Mechanism = "distributed-gaussian",
    dim: Dimension = 100_000,
    bits: Bits = None,
    encoding: Encoding = "wide",
    cohort: Cohort = None,
    population: Population = None,
    sampling: Sampling = "poisson",
    participation: Participation = 1.0,
    colluders: Colluders = 0,
    dropout: Dropout = 0.05,
    corrupt: Corrupt = None,
    guarantee: Guarantee = "outsider",
    max_participations: MaxParticipations = None,
    min_separation: MinSeparation = None,
    example_rate: ExampleRate = None,
    steps: Steps = None,
    json: AsJson = False,
) -> None:
    """The options that describe a job, shared by both commands."""


@app.command()
@options_of(_job)
def epsilon(
    noise_multiplier: Annotated[float, typer.Option(metavar="Z", help="Noise over clip.")],
    **job: Any,
) -> None:
    """Show what a job with this much noise costs, in every view and by every accountant."""
    _answer(noise_multiplier=noise_multiplier, **job)


@app.command()
@options_of(_job)
def calibrate(
    epsilon: Annotated[float, typer.Option(metavar="E", help="The epsilon not to exceed.")],
    **job: Any,
) -> None:
    """Find the least noise that meets an epsilon, by the accountant that is reported."""
    _answer(epsilon=epsilon, **job)


app.command()(privacy_plan.plan)


def _answer(*, json: bool, **options: Any) -> None:
    answer = _all_views(options) if _cohort_given(options) else _outsider_alone(options)
    if json:
        typer.echo(json_text.dumps(answer, indent=2))
        return
    from rich.console import Console

    Console(highlight=False).print(_epsilon_table(answer))


def _cohort_given(options: dict[str, Any]) -> bool:
    from fedsys.errors import MechanismError
    from fedsys.privacy import validation

    rate, cohort, population = options["sampling_rate"], options["cohort"], options["population"]
    if rate is not None:
        validation.probability("--sampling-rate", rate)
    if cohort is not None:
        validation.positive("--cohort", cohort)
    if population is not None:
        validation.integer("--population", population)
    if rate is None and (cohort is None or population is None):
        raise MechanismError("give --sampling-rate, or both --cohort and --population")
    return cohort is not None or population is not None


def _all_views(options: dict[str, Any]) -> dict[str, Any]:
    """Epsilon in all views of the plan that the options describe."""
    from fedsys.errors import MechanismError
    from fedsys.privacy.accounting.projection import project
    from fedsys.privacy.planning import make_plan
    from fedsys.privacy.views import VIEWS

    rate, cohort, population = options["sampling_rate"], options["cohort"], options["population"]
    if population is None:
        population = max(1, round(cohort / rate))
    elif cohort is None:
        cohort = rate * population
    elif rate is not None and abs(cohort / population - rate) > 1e-3 * rate:
        raise MechanismError(
            f"--cohort {cohort:g} of --population {population} is a rate of "
            f"{cohort / population:g}, not --sampling-rate {rate:g}: leave one of them out"
        )
    plan = make_plan(
        **{name: options[name] for name in _PLAN_OPTIONS},
        population=population,
        expected_cohort=cohort,
        dimension=options["dim"],
        clip=1.0,
        modulus_bits=options["bits"] or 0,
        noise_multiplier=options.get("noise_multiplier"),
        epsilon=options.get("epsilon"),
    )
    return _facts(options) | {
        **project(plan).to_json(),
        "accountant": plan.accountant,
        "noise_multiplier": plan.noise_multiplier,
        "delta_abort": plan.delta_abort,
        "delta_noise": {view: plan.charges.of(view) for view in VIEWS},
        "modulus_bits": plan.modulus_bits,
        "sampling_rate": plan.rate,
        "population": plan.population,
        "expected_cohort": plan.expected_cohort,
        "cap": plan.cap,
        "min_survivors": plan.min_survivors,
    }


def _outsider_alone(options: dict[str, Any]) -> dict[str, Any]:
    """The outsider's epsilon, which for most mechanisms needs the sampling rate only.

    Delta does not include aborts: their probability depends on the cohort.
    """
    from fedsys.errors import MechanismError
    from fedsys.privacy import validation
    from fedsys.privacy.accounting.costs import Steps as GaussianSteps
    from fedsys.privacy.accounting.costs import accountant_of, outsider_step
    from fedsys.privacy.accounting.projection import outsider_epsilons
    from fedsys.privacy.calibration import least_noise
    from fedsys.privacy.events import build_event
    from fedsys.privacy.views import epsilon_to_json

    mechanism = options["mechanism"]
    if (
        options["guarantee"] != "outsider"
        or mechanism in ("local-gaussian", "banded-mf")
        or options["encoding"] != "wide"
        or options["sampling"] in ("min-separation", "chosen", "arrivals")
    ):
        raise MechanismError(
            "give --cohort: for this mechanism, encoding, sampling or guarantee the sampling rate "
            "alone does not determine the cost"
        )
    turns = validation.integer("--rounds", options["rounds"])
    delta = validation.fraction("--delta", options["delta"])

    def steps_at(noise_multiplier: float) -> GaussianSteps:
        event = build_event(
            mechanism,
            dimension=options["dim"],
            clip=1.0,
            noise_multiplier=noise_multiplier,
            # a power of two, so that the rate is recovered exactly
            expected_cohort=options["sampling_rate"] * _ANY_POPULATION,
            population=_ANY_POPULATION,
            cap=1,
            min_survivors=1,
            modulus_bits=options["bits"] or 0,
            sampling=options["sampling"],
            participation=options["participation"],
            example_rate=options["example_rate"],
            steps=options["steps"],
        )
        return {outsider_step(event): turns}

    if mechanism == "none":
        multiplier = 0.0
    elif "epsilon" in options:
        target = validation.positive("--epsilon", options["epsilon"])
        multiplier = least_noise(steps_at, target, delta)
    else:
        multiplier = options["noise_multiplier"]
    steps = steps_at(multiplier)
    values = outsider_epsilons(steps, delta)
    return _facts(options) | {
        "epsilon": {
            "outsider": {name: epsilon_to_json(value) for name, value in values.items()},
            "participant": None,
            "server": None,
        },
        "reported": epsilon_to_json(next(iter(values.values()))),
        "accountant": accountant_of(steps, delta),
        "noise_multiplier": multiplier,
        "delta_abort": 0.0,
        "sampling_rate": options["sampling_rate"],
    }


def _facts(options: dict[str, Any]) -> dict[str, Any]:
    from fedsys import __version__
    from fedsys.privacy.accounting.from_ledger import accountant_versions

    names = ("mechanism", "guarantee", "rounds", "delta", "encoding", "sampling", "dropout")
    return {
        **{name: options[name] for name in names},
        "dimension": options["dim"],
        "versions": {"fedsys": __version__, **accountant_versions()},
    }


def _number(value: float | str) -> str:
    return "infinite" if isinstance(value, str) else f"{value:.4g}"


def _epsilon_table(answer: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{answer['mechanism']}, noise multiplier {answer['noise_multiplier']:.4g}, "
        f"q = {answer['sampling_rate']:.4g}, {answer['rounds']} rounds, "
        f"delta = {answer['delta']:g}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("view")
    table.add_column("epsilon", justify="right")
    table.add_column("accountant")
    table.add_column("for")
    meaning = {"outsider": "somebody who sees released models only"}
    if "cap" in answer:
        meaning |= {
            "participant": f"a client that shared {answer['meetings']} rounds with its target",
            "server": f"{answer['participations']} rounds of one client, "
            f"{answer['survivors']} clients in each sum",
        }
        table.caption = (
            f"cohorts of {answer['min_survivors']} to {answer['cap']}; delta includes "
            f"{answer['delta_abort']:.2g} for visible aborts"
        )
    for view, values in answer["epsilon"].items():
        if values is None:
            table.add_row(view, "?", "", "give --cohort")
            continue
        for number, (name, value) in enumerate(values.items()):
            first = number == 0
            note = meaning[view] if first else "cross-check"
            table.add_row(view if first else "", _number(value), name, note)
    return table
