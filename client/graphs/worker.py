"""The worker of a session that trains from an approved graph, without torch or a task's code.

It answers the questions of a query, too: those need no model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from client.graphs.answers import answers
from client.graphs.data import read_examples
from client.graphs.engine import EngineName, check_installed
from client.graphs.example_trainer import PrivateSteps
from client.graphs.process import SharedExamples, train
from client.training.example_privacy import ExamplePrivacy
from client.training.held_out import kept_for
from client.training.local import LocalConfig
from fedsys.errors import Cause, ConfigError, DataError, PolicyRefusal
from fedsys.graphs import Kind, Vetted
from fedsys.privacy import Entropy
from fedsys.privacy.encoding.parts import Parts
from fedsys.privacy.randomness import KEY_BYTES
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms

__all__ = ["GraphData"]

_log = logging.getLogger(__name__)
_KINDS: Mapping[str, Kind] = {"client": "gradient", "example": "example-gradients"}


class GraphData:
    """One client's examples and the graph that trains on them.

    Args:
        graph: the vetted graph.
        source: where the examples are; see `client.graphs.data`.
        engine: the engine that runs the graph.
        threads: processor threads for training.

    Raises:
        ConfigError: the engine is not installed, or the source is of an unknown kind.
        DataError: the examples cannot be read, or do not fit the graph.
    """

    def __init__(
        self, graph: Vetted, source: str, *, engine: EngineName = "numpy", threads: int = 1
    ) -> None:
        check_installed(engine)
        self._vetted, self._engine, self._threads = graph, engine, threads
        self._examples = SharedExamples(*read_examples(source, graph.graph))

    @property
    def graph(self) -> Vetted:
        """The vetted graph."""
        return self._vetted

    @property
    def sha256(self) -> str:
        """SHA-256 of the graph's file."""
        return self._vetted.sha256

    def check(self, terms: Terms) -> None:
        """Raise PolicyRefusal if these terms cannot be trained here."""
        graph = self._vetted.graph
        if terms.kind == "evaluate" or terms.evaluate_every:
            raise PolicyRefusal(
                "evaluations on devices are asked for, but a graph trains and does not predict; "
                "install the task's code to evaluate models",
                cause=Cause.TASK,
            )
        if terms.task != graph.task or dict(terms.options) != dict(graph.options):
            raise PolicyRefusal(
                f"task '{terms.task}' with options {dict(terms.options)} is asked for, but the "
                f"graph here is of '{graph.task}' with options {dict(graph.options)}",
                cause=Cause.TASK,
            )
        if terms.kind == "query":
            self._answer(terms, rows=slice(1), seed=0)
            return
        if terms.dimension != graph.dimension:
            raise PolicyRefusal(
                f"the graph of task '{graph.task}' has {graph.dimension} weights, but "
                f"{terms.dimension} are asked for",
                cause=Cause.TASK,
            )
        local, wanted = self._local(terms), _KINDS[terms.plan.unit]
        if graph.kind != wanted:
            raise PolicyRefusal(
                f"the unit of privacy is the {terms.plan.unit}, for which a graph of kind {wanted} "
                f"is needed; this device has one of kind {graph.kind}",
                cause=Cause.TASK,
            )
        if not local.plain or terms.shared:
            raise PolicyRefusal(
                "the job asks for a local procedure, a schedule or another optimizer than sgd and "
                "adam, for which this device has a graph only",
                cause=Cause.TASK,
            )
        if terms.plan.unit == "example":
            self._privacy(terms)
            if graph.batch_size != 1:
                raise PolicyRefusal(
                    f"the graph takes {graph.batch_size} examples a step, which it could mix; the "
                    f"operator has to export one with --batch-size 1",
                    cause=Cause.TASK,
                )
        elif local.batch_size > graph.batch_size:
            raise PolicyRefusal(
                f"batches of {local.batch_size} are asked for, but the graph takes "
                f"{graph.batch_size} examples; the operator has to export one with --batch-size "
                f"{local.batch_size}",
                cause=Cause.TASK,
            )

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """(1, length) this client's update and weight, from a process of its own; in a query, its
        answers."""
        if terms.kind == "query":
            return self._answer(terms, rows=slice(None), seed=assignment.batch_seed(client))
        private = None
        rows = kept_for(terms.kind, np.arange(self._examples.count), terms.held_out)
        if terms.plan.unit == "example":
            private = PrivateSteps(privacy=self._privacy(terms), key=entropy(KEY_BYTES))
        trained = train(
            self._vetted,
            self._examples,
            self._local(terms),
            weights=assignment.weights,
            rows=rows,
            seed=assignment.batch_seed(client),
            private=private,
            engine=self._engine,
            threads=self._threads,
        )
        peak = "unknown" if trained.peak is None else f"{trained.peak / 1e6:.0f} MB"
        _log.info(
            "round %d: trained in a process of its own (%s resident, confined by %s)",
            assignment.round,
            peak,
            trained.walls,
        )
        if trained.failed:
            _log.error(
                "round %d: the graph failed %s; zeros were used in place of these gradients",
                assignment.round,
                trained.failed,
            )
        parts = Parts(dimension=terms.dimension, weight_cap=terms.weight_cap)
        return parts.assemble(trained.update[None], clip=terms.plan.clip, examples=[len(rows)])

    def _answer(self, terms: Terms, *, rows: slice, seed: int) -> NDArray[np.float32]:
        """(1, D) what some of the examples contribute to a query."""
        x, y = self._examples.arrays()
        try:
            return answers(self._vetted.graph, terms, x[rows], y[rows], seed=seed)
        except (ConfigError, DataError) as error:
            raise PolicyRefusal(
                f"these questions cannot be answered here: {error}", cause=Cause.TASK
            ) from None

    @staticmethod
    def _privacy(terms: Terms) -> ExamplePrivacy:
        plan = terms.plan
        if plan.example_rate is None or plan.steps is None:
            raise PolicyRefusal(
                "the unit is the example, but rate and steps are not given", cause=Cause.TERMS
            )
        return ExamplePrivacy(
            clip=terms.example_clip,
            noise_multiplier=plan.noise_multiplier,
            example_rate=plan.example_rate,
            steps=plan.steps,
        )

    @staticmethod
    def _local(terms: Terms) -> LocalConfig:
        try:
            return LocalConfig(**terms.local)
        except (ConfigError, TypeError) as error:
            raise PolicyRefusal(
                f"training as asked is not possible here: {error}", cause=Cause.TASK
            ) from None
