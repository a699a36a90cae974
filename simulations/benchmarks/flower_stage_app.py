"""A Flower app that takes the same times as `simulations.benchmarks.deployment` does for fedsys.

The server side sends every node a message and waits for all replies, polling the SuperLink 20 times
a second; Flower's own `Grid.send_and_receive` polls every 3 seconds. Copied next to a
``pyproject.toml`` by `simulations.benchmarks.flower_superlink`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

__all__ = ["client_app", "server_app"]

_POLL = 0.05
_STAGE_SECONDS = 600.0

server_app = ServerApp()
client_app = ClientApp()


@client_app.query("echo")  # type: ignore[untyped-decorator, unused-ignore]
def _echo(message: Message, _context: Context) -> Message:
    """Send the model back if asked to, otherwise an empty reply."""
    wanted = bool(message.content.config_records["stage"]["echo"])
    content = message.content if wanted else RecordDict({"stage": ConfigRecord({"echo": False})})
    return Message(content, reply_to=message)


@server_app.main()  # type: ignore[untyped-decorator, unused-ignore]
def _main(grid: Grid, context: Context) -> None:
    config = context.run_config
    agents, stages = int(config["agents"]), int(config["stages"])
    ends = time.monotonic() + _STAGE_SECONDS
    while len(nodes := sorted(grid.get_node_ids())) < agents and time.monotonic() < ends:
        time.sleep(0.2)
    found: dict[str, float] = {"agents": len(nodes)}
    _stage(grid, nodes, b"x" * 64)  # warm-up: nodes install the app at its first use
    times = [_stage(grid, nodes, b"x" * 64) for _ in range(stages)]
    found["empty_stage_ms"] = 1000 * statistics.median(times)
    found["empty_stage_worst_ms"] = 1000 * max(times)
    for size in map(int, filter(None, str(config["megabytes"]).split(","))):
        content = bytes(size * 1_000_000)
        found[f"{size}_mb_down_s"] = _stage(grid, nodes[:1], content)
        found[f"{size}_mb_down_and_up_s"] = _stage(grid, nodes[:1], content, echo=True)
    out = Path(str(config["out"]))
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(out)


def _stage(grid: Grid, nodes: Sequence[int], content: bytes, *, echo: bool = False) -> float:
    """Seconds until all these nodes have answered."""
    model = ArrayRecord({"model": Array(np.frombuffer(content, np.uint8))})
    record = RecordDict({"stage": ConfigRecord({"echo": echo}), "model": model})
    started = time.monotonic()
    waiting = set(
        grid.push_messages(
            [Message(record, dst_node_id=node, message_type="query.echo") for node in nodes]
        )
    )
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            if reply.has_error():
                raise RuntimeError(f"a node failed: {reply.error.reason}")
        if time.monotonic() - started > _STAGE_SECONDS:
            raise RuntimeError(f"{len(waiting)} nodes did not answer")
        if waiting:
            time.sleep(_POLL)
    return time.monotonic() - started
