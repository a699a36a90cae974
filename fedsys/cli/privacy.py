"""``fedsys privacy``: what noise costs, what a target needs, and how to choose between them."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedsys.privacy.plan import PrivacyPlan
    from fedsys.privacy.projection import Projection

__all__ = ["app"]

app = typer.Typer(
    help="Privacy accounting without a run: epsilon, calibrate, plan.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Mechanism = Annotated[str, typer.Option(help="Name of the mechanism.", show_default=True)]
Rate = Annotated[
    float | None,
    typer.Option("--sampling-rate", metavar="Q", help="Probability of being in a cohort."),
]
Rounds = Annotated[int, typer.Option(metavar="T", help="Number of rounds.")]
Delta = Annotated[float, typer.Option(metavar="D", help="Of the whole job.")]
Dimension = Annotated[int, typer.Option("--dim", metavar="D", help="Coordinates of an update.")]
Bits = Annotated[
    int | None, typer.Option(metavar="B", help="Of the modulus.", show_default="32; 16 if narrow")
]
Encoding = Annotated[str, typer.Option(help="wide or narrow.")]
Cohort = Annotated[
    float | None,
    typer.Option(metavar="N", help="Expected cohort. Without it only the outsider is known."),
]
Population = Annotated[int | None, typer.Option(metavar="N", help="Clients in all.")]
Sampling = Annotated[str, typer.Option(help="poisson, fixed or min-separation.")]
Participation = Annotated[float, typer.Option(help="Secret participation probability.")]
Colluders = Annotated[int, typer.Option(metavar="C", help="Curious clients.")]
Dropout = Annotated[float, typer.Option(help="Assumed fraction of a cohort that drops out.")]
Guarantee = Annotated[str, typer.Option(help="outsider or server: whose epsilon is the target.")]
MaxParticipations = Annotated[
    int | None, typer.Option(metavar="K", help="Rounds a client takes part in at most.")
]
MinSeparation = Annotated[
    int | None, typer.Option(metavar="B", help="Rounds between two turns of a client.")
]
ExampleRate = Annotated[
    float | None, typer.Option(help="Of an example in a local batch (example-gaussian).")
]
Steps = Annotated[int | None, typer.Option(help="Local steps a round (example-gaussian).")]
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
    "max_participations",
    "min_separation",
    "example_rate",
    "steps",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def epsilon(
    noise_multiplier: Annotated[float, typer.Option(metavar="Z", help="Noise over clip.")],
    rounds: Rounds,
    delta: Delta,
    sampling_rate: Rate = None,
    mechanism: Mechanism = "distributed-skellam",
    dim: Dimension = 100_000,
    bits: Bits = None,
    encoding: Encoding = "wide",
    cohort: Cohort = None,
    population: Population = None,
    sampling: Sampling = "poisson",
    participation: Participation = 1.0,
    colluders: Colluders = 0,
    dropout: Dropout = 0.05,
    guarantee: Guarantee = "outsider",
    max_participations: MaxParticipations = None,
    min_separation: MinSeparation = None,
    example_rate: ExampleRate = None,
    steps: Steps = None,
    json: AsJson = False,
) -> None:
    """What a job with this much noise costs, in every view and by every accountant."""
    _answer(locals(), json=json)


@app.command()
def calibrate(
    epsilon: Annotated[float, typer.Option(metavar="E", help="Not to be exceeded.")],
    rounds: Rounds,
    delta: Delta,
    sampling_rate: Rate = None,
    mechanism: Mechanism = "distributed-skellam",
    dim: Dimension = 100_000,
    bits: Bits = None,
    encoding: Encoding = "wide",
    cohort: Cohort = None,
    population: Population = None,
    sampling: Sampling = "poisson",
    participation: Participation = 1.0,
    colluders: Colluders = 0,
    dropout: Dropout = 0.05,
    guarantee: Guarantee = "outsider",
    max_participations: MaxParticipations = None,
    min_separation: MinSeparation = None,
    example_rate: ExampleRate = None,
    steps: Steps = None,
    json: AsJson = False,
) -> None:
    """The least noise that meets an epsilon, by the accountant that is reported."""
    _answer(locals(), json=json)


def _answer(options: dict[str, Any], *, json: bool) -> None:
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


def _bits(options: dict[str, Any]) -> int:
    bits: int | None = options["bits"]
    return bits if bits is not None else 32 if options["encoding"] == "wide" else 16


def _all_views(options: dict[str, Any]) -> dict[str, Any]:
    """Epsilon in all views of the plan that the options describe."""
    from fedsys.errors import MechanismError
    from fedsys.privacy.plan import make_plan
    from fedsys.privacy.projection import project

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
        modulus_bits=_bits(options),
        noise_multiplier=options.get("noise_multiplier"),
        epsilon=options.get("epsilon"),
    )
    return _facts(options) | {
        **project(plan).to_json(),
        "accountant": plan.accountant,
        "noise_multiplier": plan.noise_multiplier,
        "delta_abort": plan.delta_abort,
        "sampling_rate": plan.rate,
        "population": plan.population,
        "expected_cohort": plan.expected_cohort,
        "cap": plan.cap,
        "min_survivors": plan.min_survivors,
    }


def _outsider_alone(options: dict[str, Any]) -> dict[str, Any]:
    """The outsider's epsilon, which under most mechanisms needs the sampling rate alone.

    No aborts in delta: how likely they are depends on the cohort.
    """
    from fedsys.errors import MechanismError
    from fedsys.privacy import validation
    from fedsys.privacy.calibration import bisect_noise
    from fedsys.privacy.costs import accountant_of, outsider_epsilons, reported_outsider
    from fedsys.privacy.events import Event
    from fedsys.privacy.mechanisms import build_event
    from fedsys.privacy.views import epsilon_to_json

    mechanism = options["mechanism"]
    if (
        options["guarantee"] != "outsider"
        or mechanism in ("local-gaussian", "banded-mf")
        or options["encoding"] != "wide"
        or options["sampling"] == "min-separation"
    ):
        raise MechanismError(
            "give --cohort: for this mechanism, encoding, sampling or guarantee the sampling rate "
            "alone does not tell what it costs"
        )
    turns = validation.integer("--rounds", options["rounds"])
    delta = validation.fraction("--delta", options["delta"])

    def event_at(noise_multiplier: float) -> Event:
        return build_event(
            mechanism,
            dimension=options["dim"],
            clip=1.0,
            noise_multiplier=noise_multiplier,
            # a power of two: the rate comes back exactly
            expected_cohort=options["sampling_rate"] * _ANY_POPULATION,
            population=_ANY_POPULATION,
            cap=1,
            min_survivors=1,
            modulus_bits=_bits(options),
            sampling=options["sampling"],
            participation=options["participation"],
            example_rate=options["example_rate"],
            steps=options["steps"],
        )

    if mechanism == "none":
        event, multiplier = event_at(0.0), 0.0
    elif "epsilon" in options:
        target = validation.positive("--epsilon", options["epsilon"])
        multiplier = bisect_noise(
            lambda z: reported_outsider(event_at(z), turns, delta), target, start=2.0
        )
        event = event_at(multiplier)
    else:
        multiplier = options["noise_multiplier"]
        event = event_at(multiplier)
    values = outsider_epsilons(event, turns, delta)
    return _facts(options) | {
        "epsilon": {
            "outsider": {name: epsilon_to_json(value) for name, value in values.items()},
            "participant": None,
            "server": None,
        },
        "reported": epsilon_to_json(next(iter(values.values()))),
        "accountant": accountant_of(event),
        "noise_multiplier": multiplier,
        "delta_abort": 0.0,
        "sampling_rate": options["sampling_rate"],
    }


def _facts(options: dict[str, Any]) -> dict[str, Any]:
    from fedsys import __version__
    from fedsys.privacy.replay import accountant_versions

    names = ("mechanism", "guarantee", "rounds", "delta", "encoding", "sampling", "dropout")
    return {
        **{name: options[name] for name in names},
        "dimension": options["dim"],
        "modulus_bits": _bits(options),
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
    meaning = {"outsider": "who sees released models only"}
    if "cap" in answer:
        meaning |= {
            "participant": f"a client that shared {answer['meetings']} rounds with its target",
            "server": f"{answer['participations']} rounds of one client, "
            f"{answer['survivors']} clients in each sum",
        }
        table.caption = (
            f"cohorts of {answer['min_survivors']} to {answer['cap']}; delta includes "
            f"{answer['delta_abort']:.2g} for aborts that show"
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


@app.command("plan")
def plan_command(
    population: Annotated[int, typer.Option(metavar="N", help="Clients in all.")],
    dim: Dimension,
    epsilon: Annotated[float, typer.Option(metavar="E", help="Budget of the guaranteed view.")],
    delta: Annotated[
        float | None, typer.Option(metavar="D", help="Of the job.", show_default="1 / N^1.1")
    ] = None,
    mechanism: Mechanism = "distributed-skellam",
    cohort: Annotated[
        list[float] | None, typer.Option(metavar="N", help="Cohorts to compare; repeatable.")
    ] = None,
    rounds: Annotated[
        list[int] | None, typer.Option(metavar="T", help="Rounds to compare; repeatable.")
    ] = None,
    encoding: Encoding = "wide",
    bits: Bits = None,
    colluders: Colluders = 0,
    dropout: Dropout = 0.05,
    guarantee: Guarantee = "outsider",
    max_participations: MaxParticipations = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a plot (png, svg, pdf).")
    ] = None,
    json: AsJson = False,
) -> None:
    """Cohort x rounds x noise for a budget: all views, accuracy lost, memory and bandwidth."""
    from fedsys.errors import MechanismError
    from fedsys.privacy import validation
    from fedsys.privacy.plan import make_plan
    from fedsys.privacy.projection import project

    validation.integer("--population", population, least=2)
    validation.integer("--dim", dim)
    delta = population**-1.1 if delta is None else delta
    rows: list[dict[str, Any]] = []
    for size in cohort or _default_cohorts(population):
        for count in rounds or [50, 200, 1000]:
            try:
                plan = make_plan(
                    mechanism=mechanism,
                    population=population,
                    expected_cohort=size,
                    rounds=count,
                    dimension=dim,
                    clip=1.0,
                    delta=delta,
                    epsilon=epsilon,
                    encoding=encoding,  # type: ignore[arg-type]
                    modulus_bits=bits or (32 if encoding == "wide" else 16),
                    guarantee=guarantee,  # type: ignore[arg-type]
                    colluders=colluders,
                    dropout=dropout,
                    max_participations=max_participations,
                )
            except MechanismError as error:
                rows.append({"cohort": size, "rounds": count, "refused": str(error)})
                continue
            rows.append(_row(plan, project(plan)))
    if all("refused" in row for row in rows):
        raise MechanismError(rows[0]["refused"])
    if plot is not None:
        _draw(rows, plot, epsilon=epsilon, guarantee=guarantee)
    if json:
        typer.echo(json_text.dumps({"delta": delta, "epsilon": epsilon, "rows": rows}, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_plan_table(rows, epsilon=epsilon, delta=delta, guarantee=guarantee))
    for row in rows:
        if "refused" in row:
            console.print(f"cohort {row['cohort']:g}, {row['rounds']} rounds: {row['refused']}")
    if plot is not None:
        console.print(f"plot: {plot}")


def _default_cohorts(population: int) -> list[float]:
    wanted = (50, 200, 1000, 5000)
    return [float(size) for size in wanted if size <= population / 2] or [population / 2]


def _row(plan: PrivacyPlan, projection: Projection) -> dict[str, Any]:
    """One line of the plan: privacy by view, noise, and what a client and the server carry."""
    mechanism = plan.build_mechanism()
    length, width = mechanism.length, 4 * plan.dimension
    upload = length * plan.modulus_bits / 8
    ring = 2 if plan.modulus_bits <= 16 else 4 if plan.modulus_bits <= 32 else 8
    return {
        "cohort": plan.expected_cohort,
        "rounds": plan.rounds,
        "cap": plan.cap,
        "min_survivors": plan.min_survivors,
        "noise_multiplier": plan.noise_multiplier,
        "noise_per_coordinate": mechanism.noise_deviation,
        "noise_norm_over_clip": mechanism.noise_deviation * plan.dimension**0.5,
        **projection.to_json(),
        "upload_bytes_a_round": round(upload),
        "download_bytes_a_round": width,
        "bytes_a_client_typical_worst": round((upload + width) * projection.participations),
        # model, update, encoded integers and noise (int64) at once
        "client_memory_bytes": 2 * width + length * (ring + 8),
        "server_memory_bytes": 2 * width + length * (ring + 8),
    }


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _plan_table(
    rows: list[dict[str, Any]], *, epsilon: float, delta: float, guarantee: str
) -> Table:
    from rich import box
    from rich.table import Table

    kept = [row for row in rows if "refused" not in row]
    moved = kept[0]["upload_bytes_a_round"] + kept[0]["download_bytes_a_round"]
    table = Table(
        title=f"What meets epsilon {epsilon:g} for the {guarantee} at delta {delta:.3g}",
        caption="z: noise multiplier. noise: its norm in a mean update, in clipping norms.\n"
        "participant, server: typical worst client. a job: bytes of the busiest\n"
        f"client; each holds {_size(kept[0]['client_memory_bytes'])} of vectors and moves "
        f"{_size(moved)} a round.",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    names = ("cohort", "rounds", "z", "noise", "outsider", "participant", "server", "a job")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in kept:
        views = [next(iter(values.values())) for values in row["epsilon"].values()]
        table.add_row(
            f"{row['cohort']:g}",
            str(row["rounds"]),
            f"{row['noise_multiplier']:.3g}",
            f"{row['noise_norm_over_clip']:.3g}",
            *("infinite" if value == "inf" else f"{value:.3g}" for value in views),
            _size(row["bytes_a_client_typical_worst"]),
        )
    return table


def _draw(rows: list[dict[str, Any]], path: Path, *, epsilon: float, guarantee: str) -> None:
    """Noise against rounds, and the three views against rounds, one line a cohort."""
    from matplotlib.figure import Figure

    from fedsys.errors import ConfigError

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    noise, views = figure.subplots(1, 2)
    kept = [row for row in rows if "refused" not in row]
    styles = {"outsider": "-", "participant": "--", "server": ":"}
    for index, size in enumerate(sorted({row["cohort"] for row in kept})):
        line = sorted((row for row in kept if row["cohort"] == size), key=lambda r: r["rounds"])
        counts = [row["rounds"] for row in line]
        colour = f"C{index}"
        noise.plot(
            counts,
            [row["noise_norm_over_clip"] for row in line],
            "o-",
            color=colour,
            label=f"cohort {size:g}",
        )
        for view, style in styles.items():
            values = [next(iter(row["epsilon"][view].values())) for row in line]
            if "inf" not in values:
                views.plot(counts, values, style, marker=".", color=colour)
    for axes in (noise, views):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("rounds")
        axes.grid(alpha=0.3)
    noise.set_ylabel("norm of the noise / clipping norm")
    noise.set_title(f"Noise in a round's mean at epsilon {epsilon:g} ({guarantee})")
    noise.legend(frameon=False)
    views.set_ylabel("epsilon")
    views.set_title("Epsilon by view (typical worst client)")
    for view, style in styles.items():
        views.plot([], [], style, color="0.4", label=view)
    views.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: cannot write it: {error}") from None
