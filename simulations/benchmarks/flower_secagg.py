"""Flower's SecAgg+ (flwr 1.42), with its own stage functions called in this process.

Clients run ``_setup``, ``_share_keys``, ``_collect_masked_vectors`` and ``_unmask`` of
``flwr.client.mod.secure_aggregation.secaggplus_mod`` on states kept in memory; the server runs the
four stages of ``SecAggPlusWorkflow`` over a grid that calls the clients. The times include no
protocol buffers, processes or state files.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["Sharing", "Upload", "version", "whole_round"]


def _flwr(module: str) -> Any:
    """Import a module of flwr, which need not be installed."""
    return importlib.import_module(f"flwr.{module}")


def version() -> str | None:
    """Return flwr's version, or None where it is not installed."""
    try:
        return importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        return None


def _timed(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def _client() -> Any:
    return _flwr("client.mod.secure_aggregation.secaggplus_mod")


def _words() -> Any:
    return _flwr("common.secure_aggregation.secaggplus_constants")


class Sharing:
    """Flower's Shamir functions, applied to the two secrets that a client shares."""

    def __init__(self, count: int, threshold: int) -> None:
        self._shamir = _flwr("common.secure_aggregation.crypto.shamir")
        keys = _flwr("supercore.primitives.asymmetric")
        self._count, self._threshold = count, threshold
        self._secrets = os.urandom(32), keys.private_key_to_bytes(keys.generate_key_pairs()[0])
        self._shares = [self._split(secret)[:threshold] for secret in self._secrets]

    def _split(self, secret: bytes) -> list[bytes]:
        shares: list[bytes] = self._shamir.create_shares(secret, self._threshold, self._count)
        return shares

    def create(self) -> float:
        """CPU seconds to share both secrets."""
        return _timed(lambda: [self._split(secret) for secret in self._secrets])

    def combine(self) -> float:
        """CPU seconds to reconstruct both secrets."""
        return _timed(lambda: [self._shamir.combine_shares(s) for s in self._shares])


class Upload:
    """One Flower client with k neighbours, up to its masked vector."""

    def __init__(self, degree: int, length: int) -> None:
        client, key = _client(), _words().Key
        me = degree // 2 + 1
        states: dict[int, Any] = {}
        public: dict[str, list[bytes]] = {}
        for node in range(1, degree + 2):
            state = states[node] = client.SecAggPlusState()
            state.nid = node
            reply = client._setup(
                state,
                {
                    key.SAMPLE_NUMBER: degree + 1,
                    key.SHARE_NUMBER: degree + 1,
                    key.THRESHOLD: 2,
                    key.CLIPPING_RANGE: 8.0,
                    key.TARGET_RANGE: 1 << 22,
                    key.MOD_RANGE: 1 << 32,
                    key.MAX_WEIGHT: 1000.0,
                },
            )
            public[str(node)] = [reply[key.PUBLIC_KEY_1], reply[key.PUBLIC_KEY_2]]
        ciphertexts, sources = [], []
        for node, state in states.items():
            reply = client._share_keys(state, public)
            if node != me:
                ciphertexts.append(
                    reply[key.CIPHERTEXT_LIST][reply[key.DESTINATION_LIST].index(me)]
                )
                sources.append(node)
        config = {key.CIPHERTEXT_LIST: ciphertexts, key.SOURCE_LIST: sources}
        vector = _flwr("common").ndarrays_to_parameters([np.zeros(length, np.float32)])
        self._step = lambda: client._collect_masked_vectors(states[me], config, 1, vector)

    def run(self) -> float:
        """CPU seconds of the masking step; may be called repeatedly."""
        return _timed(self._step)


class _Grid:
    """Calls the clients one after the other, and times them."""

    def __init__(self, length: int, gone: frozenset[int]) -> None:
        self._gone = gone
        self._states: dict[int, Any] = {}
        self._vector = _flwr("common").ndarrays_to_parameters([np.zeros(length, np.float32)])
        self.seconds: dict[int, float] = {}

    def send_and_receive(self, messages: list[Any], timeout: float | None = None) -> list[Any]:
        """Answer the messages of one stage."""
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            start = time.process_time()
            content = self._answer(node, message.content)
            took = time.process_time() - start
            self.seconds[node] = self.seconds.get(node, 0.0) + took
            if content is not None:
                replies.append(
                    SimpleNamespace(
                        metadata=SimpleNamespace(src_node_id=node),
                        content=content,
                        has_error=lambda: False,
                    )
                )
        return replies

    def _answer(self, node: int, content: Any) -> Any:
        client, common, words = _client(), _flwr("common"), _words()
        config = dict(content.config_records[words.RECORD_KEY_CONFIGS])
        stage = config.pop(words.Key.STAGE)
        if stage == words.Stage.SETUP:
            self._states[node] = client.SecAggPlusState()
            self._states[node].nid = node
            result = client._setup(self._states[node], config)
        elif stage == words.Stage.SHARE_KEYS:
            result = client._share_keys(self._states[node], config)
        elif stage == words.Stage.COLLECT_MASKED_VECTORS:
            if node in self._gone:
                return None
            result = client._collect_masked_vectors(self._states[node], config, 1, self._vector)
        else:
            result = client._unmask(self._states[node], config)
        fine = common.Status(common.Code.OK, "")
        out = _flwr("compat.common.recorddict_compat").fitres_to_recorddict(
            common.FitRes(fine, common.Parameters([], ""), 1, {}), keep_input=False
        )
        out.config_records[words.RECORD_KEY_CONFIGS] = _flwr("app").ConfigRecord(result, False)
        return out


class _Strategy:
    """The part of a strategy that the workflow uses."""

    def __init__(self, nodes: range) -> None:
        self._nodes = nodes
        self.aggregated = 0

    def configure_fit(self, server_round: int, parameters: Any, manager: Any) -> list[Any]:
        """Select every client."""
        common = _flwr("common")
        fit = common.FitIns(common.Parameters([], ""), {})
        return [(SimpleNamespace(node_id=node), fit) for node in self._nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Record how many clients are in the sum."""
        self.aggregated = len(results)
        return None, {}


def whole_round(n: int, length: int, degree: int, dropped: frozenset[int]) -> dict[str, float]:
    """Run one round.

    Args:
        n: Number of clients.
        length: Number of parameters of each client's vector.
        degree: Number of neighbours of each client; even.
        dropped: Indices, from 0, of clients that vanish before they upload.

    Returns:
        CPU seconds of the server, of a client that stayed (mean), and of all parties together.
    """
    app, words = _flwr("app"), _flwr("server.workflow.constant")
    workflows = _flwr("server.workflow.secure_aggregation.secaggplus_workflow")
    identity = _flwr("supercore.task_identity").TaskIdentity  # messages carry one
    identity.run_id, identity.task_id, identity.node_id = 1, 1, 1
    nodes = range(1, n + 1)
    gone = frozenset(i + 1 for i in dropped)
    grid, strategy, state = _Grid(length, gone), _Strategy(nodes), workflows.WorkflowState()
    record = app.RecordDict()
    record.config_records[words.MAIN_CONFIGS_RECORD] = app.ConfigRecord(
        {words.Key.CURRENT_ROUND: 1}
    )
    record.array_records[words.MAIN_PARAMS_RECORD] = app.ArrayRecord()
    context = SimpleNamespace(
        state=record, strategy=strategy, client_manager=SimpleNamespace(num_available=lambda: n)
    )
    workflow = workflows.SecAggPlusWorkflow(degree + 1, degree // 2 + 1)
    began = time.process_time()
    for stage in (
        workflow.setup_stage,
        workflow.share_keys_stage,
        workflow.collect_masked_vectors_stage,
        workflow.unmask_stage,
    ):
        if not stage(grid, context, state):
            raise RuntimeError(f"Flower's {stage.__name__} gave up")
    total = time.process_time() - began
    if strategy.aggregated != n - len(gone):
        raise RuntimeError(f"Flower aggregated {strategy.aggregated} of {n - len(gone)} results")
    stayed = [seconds for node, seconds in grid.seconds.items() if node not in gone]
    return {
        "server": total - sum(grid.seconds.values()),
        "client": sum(stayed) / len(stayed),
        "all": total,
    }
