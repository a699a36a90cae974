"""Flower's Grid in one process: what is pushed is answered at once, if its node is there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Handler = Callable[[Message, Context], Message]
Tamper = Callable[[int, Message], Message | None]


@dataclass
class Node:
    """A SuperNode: its configuration, its state, and the ClientApp that it runs."""

    handler: Handler
    config: dict[str, str | int | float | bool]
    state: RecordDict = field(default_factory=RecordDict)
    asked: int = 0


class InProcessGrid(Grid):
    """Nodes by Flower's id.

    Args:
        nodes: present from the start.
        tamper: may replace a reply, or return None to lose it.
    """

    def __init__(self, nodes: dict[int, Node], tamper: Tamper | None = None) -> None:
        self.nodes = nodes
        self._tamper = tamper
        self._count = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> object:  # type: ignore[override]
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        id = f"message-{next(self._count)}"
        message.metadata.__dict__["_message_id"] = id
        number = message.metadata.dst_node_id
        node = self.nodes.get(number)
        if node is None:
            reply: Message | None = Message(Error(code=3, reason="unavailable"), reply_to=message)
        else:
            node.asked += 1
            context = Context(
                run_id=1, node_id=number, node_config=node.config, state=node.state, run_config={}
            )
            reply = node.handler(message, context)
            if self._tamper is not None:
                reply = self._tamper(number, reply)
        if reply is not None:
            self._replies[id] = reply
        return id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(id) for id in list(message_ids) if id in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


@contextmanager
def identity() -> Iterator[None]:
    """The task's identity, which Flower sets before it loads an app."""
    before = dict(vars(TaskIdentity))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    try:
        yield
    finally:
        for name in ("_run_id", "_node_id", "_task_id"):
            setattr(TaskIdentity, name, before.get(name))
