"""Questions about the data of many devices, each answered by one noisy sum.

A device turns its rows into one vector whose L2 norm is bounded whatever the rows are; the vectors
are added as updates are (clipped in the integers, noised, encrypted), and estimates with confidence
intervals are computed from the sum. No module here imports torch.

>>> import numpy as np
>>> sheet = Sheet.of(parse([{"ask": "count", "name": "devices"}]), population=100)
>>> label = np.array([1.0, 0.0, 1.0])
>>> rows = Rows.of({"label": label}, device=np.array([0, 0, 1]), devices=3)
>>> sheet.contributions(rows)[:, 0].round(2).tolist()
[1.0, 1.0, 0.0]
"""

from fedsys.queries.answers import Answer, Estimate, Measured
from fedsys.queries.questions import (
    ASKED_MECHANISMS,
    ASKED_SAMPLINGS,
    EVALUATED,
    KINDS,
    Question,
    parse,
    to_json,
)
from fedsys.queries.rows import Column, Rows
from fedsys.queries.sheet import Sheet

__all__ = [
    "ASKED_MECHANISMS",
    "ASKED_SAMPLINGS",
    "EVALUATED",
    "KINDS",
    "Answer",
    "Column",
    "Estimate",
    "Measured",
    "Question",
    "Rows",
    "Sheet",
    "parse",
    "to_json",
]
