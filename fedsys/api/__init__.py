"""The API for notebooks: what the commands do, as functions that return values.

>>> import fedsys
>>> run = fedsys.simulate("quickstart", {"rounds.count": 3}, out="run")     # doctest: +SKIP
>>> run.metrics["accuracy"], run.epsilon.outsider                            # doctest: +SKIP
>>> run.history.to_pandas(), run.plot(), run.model()                         # doctest: +SKIP
>>> run.audit().passed                                                       # doctest: +SKIP
True
"""

from fedsys.api.asking import Answers, query
from fedsys.api.running import resume, simulate
from fedsys.audit import audit_run
from fedsys.runs.comparison import Comparison, compare
from fedsys.runs.rows import Rows
from fedsys.runs.run import Run
from simulations.personal import Figures, evaluate_clients

__all__ = [
    "Answers",
    "Comparison",
    "Figures",
    "Rows",
    "Run",
    "audit_run",
    "compare",
    "evaluate_clients",
    "query",
    "resume",
    "simulate",
]
