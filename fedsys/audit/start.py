"""The claim about the run that another one starts from: that its rounds are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsys.audit.evidence import Evidence
from fedsys.audit.wording import claim, plain, value_text
from fedsys.privacy import LedgerView
from fedsys.records import Claim

__all__ = ["links", "start_claim"]

_NAME = "Start from another run"


def start_claim(evidence: Evidence, view: LedgerView) -> Claim | None:
    """Whether configuration and header name the same run, and the header counts it; None for a run
    that starts from its task's own initial model."""
    stated, config = view.header.get("start"), evidence.config.value
    asked = None if config is None else config.get("job.start") or None
    if stated is None and asked is None:
        return None
    tuning = view.header.get("tuning")
    heads = tuning.get("heads") if isinstance(tuning, dict) else None
    counted = isinstance(heads, list) and isinstance(stated, str) and stated in heads
    words = "its head is among those of the runs before this one, whose rounds count in the total"
    if config is not None and asked != stated:
        words = f"config.toml has job.start = {value_text(asked)}"
    elif not counted:
        words = (
            "its head is not among those of the runs before this one: its rounds are not counted"
        )
    return claim(
        _NAME,
        counted and (config is None or asked == stated),
        claimed=f"the model that the run with head {value_text(stated)} reached",
        rederived=words,
        by="header and config.toml",
        rests_on="the coordinator's word for the model: --compose with that run compares it",
    )


def links(views: Sequence[tuple[str, LedgerView]]) -> Iterator[Claim]:
    """For each run that starts from another one: whether its first model is that run's last.

    Args:
        views: names and ledgers of runs that are audited together.
    """
    known = {view.head: (name, view) for name, view in views}
    for name, view in views:
        stated = view.header.get("start")
        if stated is None:
            continue
        before = known.get(stated) if isinstance(stated, str) else None
        began = view.header.get("initial_weights_sha256")
        if before is None:
            yield claim(
                f"Run {name} starts from another run",
                None,
                claimed=f"the run with head {value_text(stated)}",
                rederived="that run is not here",
                by="the header's start against the other ledgers' heads",
                rests_on="the coordinator's word",
            )
            continue
        last = [each.body for each in before[1].rounds if each.outcome == "commit"][-1:]
        reached = last[0].get("weights_sha256") if last else None
        yield claim(
            f"Run {name} starts from run {plain(before[0])}",
            began is not None and began == reached,
            claimed=value_text(began),
            rederived=f"{value_text(reached)} in its newest commit; both runs' rounds are in the "
            f"totals below",
            by="the header's initial weights against that ledger",
        )
