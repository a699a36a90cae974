"""``--track``: shows a run in TensorBoard, MLflow or a tracker of one's own while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from fedsys.report.trackers import Tracker
    from simulations.harness import RoundReport

__all__ = ["TRACK_HELP", "send_to", "tracked", "trackers_of"]

TRACK_HELP = "tensorboard:DIR, mlflow:URI or module:Attr; may be given several times."

Watch = Callable[["RoundReport | str"], None]


@contextmanager
def tracked(
    specs: Sequence[str] | None, folder: Path | None, watch: Watch, *, quiet: bool
) -> Iterator[Watch]:
    """`watch`, with trackers told of each round that it is told of.

    Args:
        specs: as given to ``--track``.
        folder: of the run, which may not exist yet.
        watch: shows rounds and notices.
        quiet: whether it shows nothing; failing trackers are then named on standard error.

    Raises:
        ConfigError: a tracker that cannot be made, before anything has begun.
    """
    if not specs or folder is None:
        yield watch
        return
    from fedsys.report.following import Following

    trackers = trackers_of(specs)
    with Following(folder, trackers, say=_echo if quiet else watch) as following:

        def both(event: RoundReport | str) -> None:
            watch(event)
            following.look()

        yield both


def trackers_of(specs: Sequence[str] | None) -> dict[str, Tracker]:
    """Trackers by the name that the user gave.

    Raises:
        ConfigError: one that cannot be made.
    """
    if not specs:
        return {}
    from fedsys.report.trackers import build_tracker

    return {spec: build_tracker(spec) for spec in specs}


def send_to(trackers: Mapping[str, Tracker], folder: Path) -> None:
    """Tell trackers of a run that has ended."""
    if trackers:
        from fedsys.report.following import send

        send(folder, trackers, say=_echo)


def _echo(line: str) -> None:
    say(line, err=True)
