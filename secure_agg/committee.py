"""The committee that serves a cohort: how large it is and what it withstands.

>>> committee = choose_committee(n=1000, corrupt=0.1, dropout=0.1)
>>> committee.size, committee.colluders, committee.needed
(160, 64, 113)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

from secure_agg import hypergeometric
from secure_agg.errors import ParameterError
from secure_agg.hardness import RING_DEGREE

__all__ = [
    "EVERYBODY",
    "LIVENESS_BITS",
    "MAX_COHORT",
    "MAX_COMMITTEE",
    "PROOF_COLUMNS",
    "SEAL_OVERHEAD",
    "SECRECY_BITS",
    "SUITES",
    "SUITE_NAMES",
    "Committee",
    "choose_committee",
    "cohort_colluders",
    "live_members",
    "require_fraction",
    "require_integer",
]

MAX_COHORT: Final = 10_000
MAX_COMMITTEE: Final = 1_000
EVERYBODY: Final = 100
"""Up to this cohort everybody is in the committee: nothing is drawn, so nothing can be ground."""
SECRECY_BITS: Final = 104
"""Of the chance that a drawn committee holds too many colluders: 2^-40 after 2^64 tries."""
LIVENESS_BITS: Final = 30
"""Of the chance that a drawn committee holds too few live members."""
PROOF_COLUMNS: Final = 8
"""Random combinations in the low-degree proof: a false one passes with chance 65521^-8 = 2^-128."""
SUITES: Final = (1, 2)
"""1: X25519. 2: X25519 and ML-KEM-768."""
SUITE_NAMES: Final = {"x25519": 1, "x25519-mlkem768": 2}
"""What configurations and terms call them."""
SEAL_OVERHEAD: Final = {1: 16, 2: 16 + 1088}
"""Bytes that sealing adds to a share: the tag, and in suite 2 the ML-KEM-768 ciphertext."""
_PREKEY_BYTES: Final = {1: 4 + 32 + 64, 2: 4 + 32 + 1184 + 64}
"""Bytes of one committee position in the opening: id, sealing keys, signature."""
ROW_BYTES: Final = 168
"""Bytes of one upload in the delivery to a committee member, besides its proof and its share."""
_UP_WEIGHT: Final = 10
"""Bytes down that one byte up counts as: up is the slow direction of a device's connection."""
_STEP: Final = 10
_SLACK: Final = 1e-9  # 0.1 * 30 is 3.0000000000000004 and means 3


@dataclass(frozen=True, kw_only=True)
class Committee:
    """Sizes of the committee that serves a cohort.

    A planner that wants the chance that a round is given up needs `size` and `needed`: the
    committee is drawn from the cohort without replacement (it is the whole cohort where
    ``size == n``), and the round fails when fewer than `needed` of its members stay.

    Attributes:
        size: Members, C.
        colluders: Most that may collude, c; exceeded with chance 2^-104 in a drawn committee.
        live: Least that stay if no more than the promised fraction of the cohort is lost; missed
            with chance 2^-30 in a drawn committee.
        quorum: Endorsements of one set, q: two sets cannot both have q while c collude.
        threshold: Answers that determine the sum, t.
        packing: Secrets packed into one polynomial, rho.
        errors: Wrong answers that are corrected when `live` members answer.
    """

    size: int
    colluders: int
    live: int
    quorum: int
    threshold: int
    packing: int
    errors: int

    @property
    def needed(self) -> int:
        """Live members without which there is no sum."""
        return max(self.quorum, self.threshold)


def cohort_colluders(*, n: int, corrupt: float, colluders: int = 0) -> int:
    """Return how many of a cohort may collude: the fraction, or the absolute number if greater.

    Raises:
        ParameterError: Fewer than two members would be honest, or a value is out of range.
    """
    require_integer("n", n, 2, MAX_COHORT)
    require_fraction("corrupt", corrupt)
    require_integer("colluders", colluders, 0, 2**32 - 1)
    count = max(math.ceil(corrupt * n - _SLACK), min(colluders, n - 2))
    if count > n - 2:
        raise ParameterError(
            f"n={n}, corrupt={corrupt}: {count} of {n} members may collude, and a sum hides "
            f"nobody unless two are honest{_explicit_choice(n) or '; invite more, or assume less'}"
        )
    return count


def live_members(*, n: int, dropout: float) -> int:
    """Return how many of a cohort stay when the fraction that may be lost is lost."""
    return math.floor((1 - dropout) * n + _SLACK)


def choose_committee(
    *,
    n: int,
    corrupt: float,
    dropout: float,
    colluders: int = 0,
    suite: int = 1,
    size: int | None = None,
) -> Committee:
    """Return the committee for a cohort; arguments as `SecAggParams.derive`.

    Up to 100 members everybody is in it, and the counts are certain. Above, the size is searched
    in steps of ten for the fewest bytes that an average member moves on the committee's account:
    sealed shares and proof up, sealing keys and what is delivered to the committee down, where a
    byte up counts as ten down. The tails are exact: more colluders than c with chance
    2^-104, fewer live members than ``live`` with chance 2^-30.

    With c colluders, ``tau = max(c, 1)`` shares must reveal nothing, and ``tau + rho`` answers
    determine the sum. Of the live members, twice the number of wrong answers to be corrected are
    set aside; ceil(corrupt C) of them if that leaves room, and otherwise half, a quarter ... and
    finally none, before the parameters are refused. The rest is rho, reduced to the least that
    needs the same number of polynomials; what that frees corrects further errors.

    Raises:
        ParameterError: As `SecAggParams.derive`.
    """
    require_integer("n", n, 2, MAX_COHORT)
    require_fraction("corrupt", corrupt)
    require_fraction("dropout", dropout)
    require_integer("colluders", colluders, 0, 2**32 - 1)
    require_integer("suite", suite, SUITES[0], SUITES[-1])
    if size is not None:
        require_integer("committee", size, 2, min(n, MAX_COMMITTEE))
    return _choose(n, float(corrupt), float(dropout), colluders, suite, size)


@functools.lru_cache(maxsize=65_536)
def _choose(
    n: int, corrupt: float, dropout: float, colluders: int, suite: int, size: int | None
) -> Committee:
    bad = cohort_colluders(n=n, corrupt=corrupt, colluders=colluders)
    stay = live_members(n=n, dropout=dropout)
    if size is not None:
        sizes = [size]
    elif n <= EVERYBODY:
        sizes = [n]
    else:
        sizes = list(range(_STEP, min(n, MAX_COMMITTEE) + 1, _STEP))
        if n <= MAX_COMMITTEE and n % _STEP:
            sizes.append(n)
    halvings = math.ceil(corrupt * sizes[-1] - _SLACK).bit_length()
    for given_up in range(halvings + 1):
        best: tuple[int, Committee] | None = None
        fewest = 0
        for candidate in sizes:
            if best is not None and candidate * _least_cost(suite, fewest) >= best[0]:
                break
            wanted = math.ceil(corrupt * candidate - _SLACK) >> given_up
            committee = _committee(n, bad, stay, candidate, wanted)
            if committee is None:
                continue
            fewest = committee.colluders  # larger committees hold no fewer
            cost = _cost(committee, suite)
            if best is None or cost < best[0]:
                best = cost, committee
        if best is not None:
            return best[1]
    raise ParameterError(_why_none(n, corrupt, dropout, colluders, bad, stay, sizes))


def _tails(n: int, bad: int, stay: int, size: int) -> tuple[int, int]:
    """Return the most colluders and the least live members of a committee."""
    if size == n:
        return bad, stay
    return (
        hypergeometric.upper(population=n, marked=bad, draws=size, bits=SECRECY_BITS),
        hypergeometric.lower(population=n, marked=stay, draws=size, bits=LIVENESS_BITS),
    )


def _committee(n: int, bad: int, stay: int, size: int, wanted: int) -> Committee | None:
    """Return the committee of ``size`` that corrects ``wanted`` errors, or None."""
    colluders, live = _tails(n, bad, stay, size)
    quorum = (size + colluders) // 2 + 1
    tau = max(colluders, 1)
    packing = live - 2 * wanted - tau
    if live < quorum or packing < 1:
        return None
    columns = -(-RING_DEGREE // min(packing, RING_DEGREE))
    packing = -(-RING_DEGREE // columns)
    threshold = tau + packing
    return Committee(
        size=size,
        colluders=colluders,
        live=live,
        quorum=quorum,
        threshold=threshold,
        packing=packing,
        errors=(live - threshold) // 2,
    )


def _cost(committee: Committee, suite: int) -> int:
    columns = -(-RING_DEGREE // committee.packing)
    share = 2 * (columns + PROOF_COLUMNS) + SEAL_OVERHEAD[suite]
    proof = 2 * PROOF_COLUMNS * committee.threshold
    up = committee.size * share + proof
    # n deliveries of a row, proof and share reach each committee member: C of them an average one.
    down = committee.size * (_PREKEY_BYTES[suite] + ROW_BYTES + proof + share)
    return _UP_WEIGHT * up + down


def _least_cost(suite: int, colluders: int) -> int:
    """Return what a committee member costs at least, with more than so many answers needed."""
    share = 2 * (1 + PROOF_COLUMNS) + SEAL_OVERHEAD[suite]
    proof = 2 * PROOF_COLUMNS * (colluders + 1)
    return _UP_WEIGHT * share + _PREKEY_BYTES[suite] + ROW_BYTES + proof + share


def _why_none(
    n: int,
    corrupt: float,
    dropout: float,
    colluders: int,
    bad: int,
    stay: int,
    sizes: list[int],
) -> str:
    """Return the message that says what cannot be met, at the size that comes closest.

    It is the quorum: a committee with a quorum of live members has at least one more of them than
    colluders, which is room for a threshold once no errors are to be corrected.
    """

    def lack(size: int) -> float:
        most, live = _tails(n, bad, stay, size)
        return ((size + most) // 2 + 1 - live) / size

    closest = min(sizes, key=lack)
    most, live = _tails(n, bad, stay, closest)
    quorum = (closest + most) // 2 + 1
    who = "everybody" if closest == n else f"{closest} members"
    what = f"n={n}, corrupt={corrupt}, dropout={dropout}"
    if colluders:
        what += f", colluders={colluders}"
    advice = _explicit_choice(n) or "; invite more, or assume less"
    return (
        f"{what} cannot be met: with {who} in the committee, of whom {most} may collude, "
        f"{live} live members are below the quorum of {quorum}{advice}"
    )


def _explicit_choice(n: int) -> str:
    if n > 3:
        return ""
    return (
        f"; {n} members can be served only by an explicit choice of corrupt = 0 (nobody colludes "
        "with the server) or dropout = 0 (nobody may be lost), or of both"
    )


def require_fraction(name: str, value: float) -> None:
    """Refuse what is no number in [0, 1).

    Raises:
        ParameterError: With the name and the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ParameterError(f"{name} is {value!r}: a fraction in [0, 1) is needed")


def require_integer(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is no integer from ``low`` to ``high``.

    Raises:
        ParameterError: With the name, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{name} is {value!r}: an integer is needed")
    if not low <= value <= high:
        raise ParameterError(f"{name} is {value}: it must be from {low} to {high}")
