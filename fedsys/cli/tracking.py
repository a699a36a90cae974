"""``--track``: shows a run in TensorBoard, MLflow or a custom tracker while it runs."""

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
    """`watch`, extended to send each round to trackers too.

    Args:
        specs: as given to ``--track``.
        folder: the run's folder, which may not exist yet.
        watch: shows rounds and notices.
        quiet: whether `watch` shows nothing; failing trackers are then named on standard error.

    Raises:
        ConfigError: a tracker cannot be created; raised before the run starts.
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
        ConfigError: one cannot be created.
    """
    if not specs:
        return {}
    from fedsys.report.trackers import build_tracker

    return {spec: build_tracker(spec) for spec in specs}


def send_to(trackers: Mapping[str, Tracker], folder: Path) -> None:
    """Sends a finished run to trackers."""
    if trackers:
        from fedsys.report.following import send

        send(folder, trackers, say=_echo)


def _echo(line: str) -> None:
    say(line, err=True)
