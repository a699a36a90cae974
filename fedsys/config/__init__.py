"""One TOML tree describes a job; loading it either yields a `Config` or one clear line.

>>> from fedsys.config import load
>>> config = load(None, ["rounds.count=3", "privacy.epsilon=4"])
>>> config.rounds.count, config.privacy.epsilon, config.privacy.noise_multiplier
(3, 4.0, None)

Keys that change the privacy guarantee live in ``[population]``, ``[cohort]``, ``[rounds]``,
``[privacy]`` and ``[aggregation]``; ``[engine]`` holds only what changes speed (and the last bits
of floating point), ``[faults]`` only what a simulation does to its virtual clients.
"""

from fedsys.config.evaluation import Evaluation
from fedsys.config.loading import dump, load, parse, validate
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
from fedsys.config.source import recipes
from fedsys.config.tree import Config
from fedsys.config.tuning import Tuning

__all__ = [
    "Aggregation",
    "Cohort",
    "Config",
    "Engine",
    "Evaluation",
    "Faults",
    "Job",
    "Local",
    "Population",
    "Privacy",
    "Query",
    "Rounds",
    "Section",
    "Server",
    "TaskSection",
    "Tuning",
    "dump",
    "load",
    "parse",
    "recipes",
    "validate",
]
