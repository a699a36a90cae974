"""``fedsys privacy plan``: cohort x rounds x noise for a budget, as a table and a plot."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsys.cli.privacy_options import (
    AsJson,
    Bits,
    Colluders,
    Corrupt,
    Dimension,
    Dropout,
    Encoding,
    Guarantee,
    MaxParticipations,
    Mechanism,
)

if TYPE_CHECKING:
    from rich.table import Table

    from fedsys.privacy.accounting.projection import Projection
    from fedsys.privacy.plan import PrivacyPlan

__all__ = ["plan"]


def plan(
    population: Annotated[int, typer.Option(metavar="N", help="Number of clients in all.")],
    dim: Dimension,
    epsilon: Annotated[float, typer.Option(metavar="E", help="Budget of the guaranteed view.")],
    delta: Annotated[
        float | None,
        typer.Option(metavar="D", help="Delta of the whole job.", show_default="1 / N^1.1"),
    ] = None,
    mechanism: Mechanism = "distributed-gaussian",
    cohort: Annotated[
        list[float] | None, typer.Option(metavar="N", help="Cohort sizes to compare; repeatable.")
    ] = None,
    rounds: Annotated[
        list[int] | None,
        typer.Option(metavar="T", help="Numbers of rounds to compare; repeatable."),
    ] = None,
    encoding: Encoding = "wide",
    bits: Bits = None,
    colluders: Colluders = 0,
    dropout: Dropout = 0.05,
    corrupt: Corrupt = None,
    guarantee: Guarantee = "outsider",
    max_participations: MaxParticipations = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a plot (png, svg, pdf).")
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare cohort x rounds x noise for a budget, and recommend one of the rows.

    The server guarantee needs --max-participations; without it, each row takes the fewest with
    which clients' turns last for all of its rounds.
    """
    from fedsys.errors import MechanismError
    from fedsys.privacy import validation
    from fedsys.privacy.accounting.projection import project
    from fedsys.privacy.planning import make_plan
    from fedsys.privacy.sampling.turns import turns_needed

    searched = guarantee == "server" and max_participations is None
    validation.integer("--population", population, least=2)
    validation.integer("--dim", dim)
    delta = population**-1.1 if delta is None else delta
    rows: list[dict[str, Any]] = []
    for size in cohort or _default_cohorts(population):
        for count in rounds or [50, 200, 1000]:
            most = max_participations
            if searched and size > 0 and count > 0:
                most = turns_needed(population, size, count)
            try:
                found = make_plan(
                    mechanism=mechanism,
                    population=population,
                    expected_cohort=size,
                    rounds=count,
                    dimension=dim,
                    clip=1.0,
                    delta=delta,
                    epsilon=epsilon,
                    encoding=encoding,  # type: ignore[arg-type]
                    modulus_bits=bits or 0,
                    guarantee=guarantee,  # type: ignore[arg-type]
                    colluders=colluders,
                    dropout=dropout,
                    corrupt=corrupt,
                    max_participations=most,
                )
            except MechanismError as error:
                rows.append({"cohort": size, "rounds": count, "refused": str(error)})
                continue
            rows.append(_row(found, project(found)))
    if all("refused" in row for row in rows):
        raise MechanismError(rows[0]["refused"])
    chosen = _recommended(rows)
    if plot is not None:
        _draw(rows, plot, epsilon=epsilon, guarantee=guarantee)
    if json:
        answer = {"delta": delta, "epsilon": epsilon, "rows": rows, "recommended": chosen}
        typer.echo(json_text.dumps(answer, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_plan_table(rows, epsilon=epsilon, delta=delta, guarantee=guarantee))
    for row in rows:
        if "refused" in row:
            console.print(f"cohort {row['cohort']:g}, {row['rounds']} rounds: {row['refused']}")
    console.print(_advice(rows, chosen))
    console.print(_CLIP)
    if plot is not None:
        console.print(f"plot: {plot}")


_CLIP = (
    "the clipping norm: privacy.adaptive_quantile = 0.5 lets it follow the updates at the same "
    "epsilon (distributed-, central- or local-gaussian); or find privacy.clip by `fedsys tune` on "
    "data that need no protection. Noise is in proportion to it"
)


def _lasts(row: dict[str, Any]) -> bool:
    turns = row["turns_last_rounds"]
    return turns is None or turns >= row["rounds"]


def _worth(row: dict[str, Any]) -> float:
    """Steps add up and independent noise does so by its square root."""
    return float(row["rounds"] ** 0.5 / row["noise_norm_over_clip"])


def _recommended(rows: list[dict[str, Any]]) -> int | None:
    """The place of the row to take: of those whose noise is within a tenth of the least against
    what all rounds add up to, the one that costs its busiest client the fewest bytes; None if in
    every row the clients' turns end before the rounds do."""
    fit = [at for at, row in enumerate(rows) if "refused" not in row and _lasts(row)]
    fit = [at for at in fit if rows[at]["noise_norm_over_clip"] > 0]
    if not fit:
        return None
    best = max(_worth(rows[at]) for at in fit)
    near = [at for at in fit if _worth(rows[at]) >= 0.9 * best]
    return min(near, key=lambda at: (rows[at]["bytes_a_client_typical_worst"], at))


def _advice(rows: list[dict[str, Any]], chosen: int | None) -> str:
    if chosen is None:
        if all(row["noise_norm_over_clip"] == 0 for row in rows if "refused" not in row):
            return "recommended: none, without noise all rows are alike"
        return (
            "recommended: none, in every row the clients' turns end before the rounds do; raise "
            "--max-participations, or lower --rounds or --cohort"
        )
    row = rows[chosen]
    turns = row["max_participations"]
    said = "" if turns is None else f" --max-participations {turns}"
    large = ""
    if row["noise_norm_over_clip"] > 1:
        large = (
            f"; a round's noise is {row['noise_norm_over_clip']:.2g} times as long as the largest "
            f"update: expect slow learning, or train fewer parameters"
        )
    return (
        f"recommended: cohort {row['cohort']:g}, {row['rounds']} rounds{said}, the least noise "
        f"against what the rounds add up to, or within a tenth of it for fewer bytes{large}"
    )


def _default_cohorts(population: int) -> list[float]:
    wanted = (50, 200, 1000, 5000)
    return [float(size) for size in wanted if size <= population / 2] or [population / 2]


def _row(plan: PrivacyPlan, projection: Projection) -> dict[str, Any]:
    """One line of the plan: privacy by view, noise, and the load of a client and the server."""
    from fedsys.privacy.sampling.turns import turns_last

    mechanism, most = plan.build_mechanism(), plan.max_participations
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
        "max_participations": most,
        "turns_last_rounds": (
            None if most is None else turns_last(plan.population, plan.expected_cohort, most)
        ),
        "upload_bytes_a_round": round(upload),
        "download_bytes_a_round": width,
        "bytes_a_client_typical_worst": round((upload + width) * projection.participations),
        # model, update, encoded integers and noise (int64), all at once
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
        f"{_size(moved)} per round. turns, last: the most rounds of one client, and how\n"
        "many rounds they last.",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    names = ["cohort", "rounds", "z", "noise", "outsider", "participant", "server", "a job"]
    limited = any(row["max_participations"] is not None for row in kept)
    for name in names + ["turns", "last"] * limited:
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
            *([str(row["max_participations"]), _turns(row)] if limited else []),
        )
    return table


def _turns(row: dict[str, Any]) -> str:
    return "all rounds" if _lasts(row) else f"{row['turns_last_rounds']} ROUNDS"


_COLOURS = ("#1f5fd0", "#c05e00", "#137a66", "#a0218a", "#6b6f1d", "#7a5cc8")
_MARKS = "os^Dv*"
_VIEWS = {"participant": "--", "server": ":"}


def _draw(rows: list[dict[str, Any]], path: Path, *, epsilon: float, guarantee: str) -> None:
    """Noise against rounds, and the three views against rounds, one line per cohort size."""
    from matplotlib.figure import Figure

    from fedsys.errors import ConfigError

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    noise, views = figure.subplots(1, 2)
    kept = [row for row in rows if "refused" not in row]
    for index, size in enumerate(sorted({row["cohort"] for row in kept})):
        line = sorted((row for row in kept if row["cohort"] == size), key=lambda r: r["rounds"])
        counts = [row["rounds"] for row in line]
        look: dict[str, Any] = {
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKS[index % len(_MARKS)],
            "markersize": 5,
        }
        height = [row["noise_norm_over_clip"] for row in line]
        noise.plot(counts, height, "-", label=f"cohort {size:g}", **look)
        for view, style in _VIEWS.items():
            values = [next(iter(row["epsilon"][view].values())) for row in line]
            if "inf" not in values:
                views.plot(counts, values, style, **look)
        values = [next(iter(row["epsilon"]["outsider"].values())) for row in line]
        if "inf" not in values:
            same = {"color": "0.35", "marker": ""} if guarantee == "outsider" else {}
            views.plot(counts, values, "-", **look | same)
    for axes in (noise, views):
        _plain_numbers(axes, sorted({row["rounds"] for row in kept}))
    noise.set_ylabel("norm of the noise / clipping norm")
    noise.set_title(f"Noise in a round's mean at epsilon {epsilon:g} ({guarantee})")
    noise.legend(frameon=False)
    views.set_ylabel("epsilon")
    views.set_title("Epsilon by view (typical worst client)")
    views.plot([], [], "-", color="0.35", label="outsider")
    for view, style in _VIEWS.items():
        views.plot([], [], style, color="0.35", label=view)
    views.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: cannot be written: {error}") from None


def _plain_numbers(axes: Any, counts: list[int]) -> None:
    """Logarithmic axes labelled 0.5 and 200 rather than with powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rounds")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
