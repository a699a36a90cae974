"""All tables of a configuration together."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from fedsys.config.asking import asks_fit, with_question_defaults
from fedsys.config.combinations import (
    adapts,
    buffers_accounted,
    buffers_fit,
    cohort_fits,
    coin_is_added,
    losses_fit,
    narrow_fits,
    needs_noise,
    one_holder,
    protects_examples,
    sampling_known,
    stop_fits,
    summed_fits,
    weighting_fits,
    with_buffer_as_cohort,
)
from fedsys.config.evaluation import Evaluation
from fedsys.config.sections import (
    Aggregation,
    Cohort,
    Engine,
    Faults,
    Job,
    Local,
    Population,
    Privacy,
    Query,
    Rounds,
    Section,
    Server,
    TaskSection,
)
from fedsys.config.tuning import Tuning

__all__ = ["Config"]


class Config(Section):
    """A job's configuration. Immutable; `model_copy(update=...)` makes a variant."""

    job: Job = Field(default_factory=Job)
    task: TaskSection = Field(default_factory=TaskSection)
    population: Population = Field(default_factory=Population)
    cohort: Cohort = Field(default_factory=Cohort)
    rounds: Rounds = Field(default_factory=Rounds)
    local: Local = Field(default_factory=Local)
    server: Server = Field(default_factory=Server)
    privacy: Privacy = Field(default_factory=Privacy)
    aggregation: Aggregation = Field(default_factory=Aggregation)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    engine: Engine = Field(default_factory=Engine)
    faults: Faults = Field(default_factory=Faults)
    tuning: Tuning = Field(default_factory=Tuning)
    query: Query = Field(default_factory=Query)

    @model_validator(mode="before")
    @classmethod
    def _buffer_is_cohort(cls, tree: Any) -> Any:
        return with_question_defaults(with_buffer_as_cohort(tree))

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        needs_noise(self.privacy)
        sampling_known(self.cohort, self.privacy)
        cohort_fits(self.population, self.cohort)
        narrow_fits(self.aggregation)
        losses_fit(self.aggregation)
        summed_fits(self.aggregation)
        weighting_fits(self.cohort, self.privacy, self.aggregation)
        protects_examples(self.privacy, self.aggregation)
        stop_fits(self.evaluation)
        one_holder(self.population, self.privacy)
        adapts(self.privacy, self.aggregation)
        coin_is_added(self.cohort, self.aggregation)
        buffers_fit(self.rounds, self.population, self.cohort)
        buffers_accounted(self.rounds, self.privacy, self.aggregation)
        asks_fit(self)
        return self
