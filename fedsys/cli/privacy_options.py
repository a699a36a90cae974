"""Options that the commands of ``fedsys privacy`` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "Bits",
    "Cohort",
    "Colluders",
    "Corrupt",
    "Delta",
    "Dimension",
    "Dropout",
    "Encoding",
    "ExampleRate",
    "Guarantee",
    "MaxParticipations",
    "Mechanism",
    "MinSeparation",
    "Participation",
    "Population",
    "Rate",
    "Rounds",
    "Sampling",
    "Steps",
    "options_of",
]

Mechanism = Annotated[str, typer.Option(help="Name of the mechanism.", show_default=True)]
Rate = Annotated[
    float | None,
    typer.Option("--sampling-rate", metavar="Q", help="Probability of being in a cohort."),
]
Rounds = Annotated[int, typer.Option(metavar="T", help="Number of rounds.")]
Delta = Annotated[float, typer.Option(metavar="D", help="Delta of the whole job.")]
Dimension = Annotated[int, typer.Option("--dim", metavar="D", help="Coordinates of an update.")]
Bits = Annotated[
    int | None,
    typer.Option(metavar="B", help="Bits of the modulus.", show_default="the least that fits"),
]
Encoding = Annotated[str, typer.Option(help="wide or narrow.")]
Cohort = Annotated[
    float | None,
    typer.Option(
        metavar="N", help="Expected cohort size. Without it only the outsider's epsilon is known."
    ),
]
Population = Annotated[int | None, typer.Option(metavar="N", help="Number of clients in all.")]
Sampling = Annotated[str, typer.Option(help="poisson, fixed, min-separation or chosen.")]
Participation = Annotated[float, typer.Option(help="Secret participation probability.")]
Colluders = Annotated[int, typer.Option(metavar="C", help="Number of curious clients.")]
Dropout = Annotated[
    float, typer.Option(help="Assumed probability that a member of a cohort is lost.")
]
Corrupt = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Fraction of a cohort that secure aggregation assumes to collude: rounds that miss "
        "its quorum then cost delta.",
    ),
]
Guarantee = Annotated[str, typer.Option(help="outsider or server: whose epsilon is the target.")]
MaxParticipations = Annotated[
    int | None, typer.Option(metavar="K", help="The most rounds that a client takes part in.")
]
MinSeparation = Annotated[
    int | None, typer.Option(metavar="B", help="The fewest rounds between two turns of a client.")
]
ExampleRate = Annotated[
    float | None,
    typer.Option(help="Probability that an example is in a local batch (example-gaussian)."),
]
Steps = Annotated[int | None, typer.Option(help="Local steps per round (example-gaussian).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def options_of(
    shared: Callable[..., None],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that replaces a command's ``**keywords`` by the options of `shared`."""

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        own, more = (
            list(inspect.signature(each, eval_str=True).parameters.values())
            for each in (command, shared)
        )
        named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        both = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*named, *more)]
        signature = inspect.Signature(both, return_annotation=None)
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in both}
        return command

    return extend
