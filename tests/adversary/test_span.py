"""What honest answers determine, by linear algebra over the field: never more than one sum.

The unknowns are the honest dealers' secrets and the randomness of their shares, in one column (all
columns have the same coefficients). Every answer, and every share that a colluder holds, is a
linear functional of them. What the adversary learns of the secrets is the part of the span of its
view in which the randomness cancels.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Collection, Sequence

import numpy as np
import pytest

from secure_agg.errors import SecureAggError
from secure_agg.field import PRIME, Elements, interpolation, invert
from secure_agg.messages import HEADER_SIZE
from secure_agg.sharing import secret_points
from tests.adversary.eve import BASE, Eve
from tests.secure_agg.world import World, without

PARAMS = dataclasses.replace(
    BASE, n=8, committee=8, quorum=5, threshold=4, packing=3, errors=0, min_included=3, dimension=2
)
"""Eight members, of whom number 7 colludes: four answers determine a sum, two leak a part."""
COLLUDER = 7
View = Collection[tuple[int, frozenset[int]]]
"""Positions, and the dealers whose shares each one summed."""


def reduce(rows: Elements) -> Elements:
    """Row echelon form without its zero rows."""
    work = rows % PRIME
    done = 0
    for column in range(work.shape[1]):
        found = np.flatnonzero(work[done:, column])
        if not found.size:
            continue
        pivot = done + int(found[0])
        work[[done, pivot]] = work[[pivot, done]]
        work[done] = work[done] * invert(work[done, column]) % PRIME
        others = np.flatnonzero(work[:, column])
        others = others[others != done]
        work[others] = (work[others] - work[others, column][:, None] * work[done]) % PRIME
        done += 1
        if done == len(work):
            break
    return work[:done]


def learned(
    view: View, dealers: Sequence[int], committee: int, threshold: int, packing: int
) -> Elements:
    """A basis of what a view says of the secrets alone, shape (dimension, dealers * packing)."""
    tau = threshold - packing
    points = np.concatenate((np.arange(1, tau + 1), secret_points(packing)))
    shares = interpolation(points, np.arange(1, committee + 1))  # randomness first, then secrets
    random, secret = shares[:, :tau], shares[:, tau:]
    rows = []
    for position, summed in view:
        member = np.array([int(dealer in summed) for dealer in dealers])
        rows.append(
            np.concatenate((np.kron(member, random[position]), np.kron(member, secret[position])))
        )
    if not rows:
        return np.zeros((0, len(dealers) * packing), np.int64)
    reduced = reduce(np.array(rows))
    split = len(dealers) * tau
    found: Elements = reduced[~reduced[:, :split].any(axis=1)][:, split:]
    return found


def beyond(found: Elements, dealers: Sequence[int], summed: frozenset[int], packing: int) -> int:
    """Dimensions of what was learned besides the sum over a set."""
    member = np.array([int(dealer in summed) for dealer in dealers])
    sums = np.kron(member, np.eye(packing, dtype=np.int64))
    return len(reduce(np.concatenate((sums, found)))) - len(reduce(sums))


def play(seed: int, steps: int = 120) -> set[tuple[int, frozenset[int]]]:
    """An adversary delivers, proposes, certifies, restarts and puts back as a die tells it."""
    dice = np.random.default_rng(seed)
    eve = Eve(World(PARAMS, seed="span"), (COLLUDER,))
    eve.collect()
    everybody = frozenset(eve.uploads)
    sets = [everybody, everybody - {0}, everybody - {1}, everybody - {0, 1}]
    likely = [0.8, 0.1, 0.05, 0.05] if seed % 2 else [0.4, 0.4, 0.1, 0.1]
    stores = {id_: dice.choice(["disks", "tmpfs"]) for id_ in eve.honest}
    snapshots = {id_: [copy.deepcopy(getattr(eve.world, stores[id_])[id_])] for id_ in eve.honest}
    signed: dict[frozenset[int], dict[int, bytes]] = {
        one: {COLLUDER: eve.endorse(COLLUDER, one)} for one in sets
    }
    proposed: dict[int, frozenset[int]] = {}
    view = {(COLLUDER, frozenset({dealer})) for dealer in everybody}
    for _ in range(steps):
        id_ = int(dice.choice(eve.honest))
        summed = sets[int(dice.choice(4, p=likely))]
        member = eve.world.members[id_]
        try:
            match dice.integers(10):
                case 0 | 1:
                    member.handle(eve.delivery(id_, sets[int(dice.choice([0, 0, 0, 3]))]))
                case 2 | 3:
                    reply = member.handle(eve.proposal(summed))
                    signed[summed][id_] = reply[HEADER_SIZE + 4 :]
                    proposed[id_] = summed
                case 4 | 5 | 8 | 9 if id_ in proposed:
                    member.handle(eve.certificate(signed[proposed[id_]]))
                    view.add((id_, proposed[id_]))
                case 6:
                    eve.world.restart(id_, memory=bool(dice.integers(12)))
                case 7:
                    kept = getattr(eve.world, stores[id_])
                    snapshots[id_].append(copy.deepcopy(kept[id_]))
                    kept[id_] = copy.deepcopy(
                        snapshots[id_][int(dice.integers(len(snapshots[id_])))]
                    )
                    eve.world.restart(id_)
        except SecureAggError:
            continue
    return view


def judge(view: set[tuple[int, frozenset[int]]]) -> tuple[int, int, int]:
    """How many sets were answered, what was learned, and how much of it besides one sum."""
    answered = {summed for position, summed in view if position != COLLUDER}
    honest = [dealer for dealer in range(8) if dealer != COLLUDER]
    found = learned(view, honest, 8, PARAMS.threshold, PARAMS.packing)
    best = min(
        (beyond(found, honest, summed, PARAMS.packing) for summed in answered), default=len(found)
    )
    return len(answered), len(found), best


def test_honest_answers_never_span_more_than_one_sum() -> None:
    finished = 0
    for seed in range(60):
        sets, found, rest = judge(play(seed))
        assert sets <= 1
        assert rest == 0
        assert found <= PARAMS.packing
        finished += found == PARAMS.packing
    assert finished >= 5  # the plays are not idle: some reach the whole sum


@pytest.mark.parametrize("check", ["quorum", "endorses_once"])
def test_without_a_check_some_play_learns_more(check: str) -> None:
    def learns_more() -> bool:
        return any(judge(play(seed))[2] > 0 for seed in range(60))

    with without(check):
        assert learns_more()


def test_answers_without_endorsements_leak_though_no_set_has_t_answers() -> None:
    """t > (C + c) / 2 alone is no rule for packed shares: they leak between t - rho and t."""
    committee, colluders, threshold, packing = 12, 2, 8, 5
    assert threshold > (committee + colluders) / 2
    everybody, others = frozenset(range(3)), frozenset(range(2))
    view = {(position, frozenset({dealer})) for position in (0, 1) for dealer in range(3)}
    view |= {(position, everybody) for position in range(2, 7)}
    view |= {(position, others) for position in range(7, 12)}
    found = learned(view, range(3), committee, threshold, packing)
    assert min(beyond(found, range(3), one, packing) for one in (everybody, others)) > 0


@pytest.mark.parametrize(("tau", "leaks"), [(4, True), (5, False), (6, False)])
def test_three_views_leak_though_two_cannot_meet(tau: int, leaks: bool) -> None:
    """Views {D1 + D2, D1, D2} of nine members: 2 (tau + 1) > C + c, which 4 satisfies, is no rule.

    3 (tau + 1) > 2 C, which 6 satisfies, is one; it is not necessary for every choice of points.
    """
    committee = 9
    worst = 0
    for first in itertools.combinations(range(9), 3):
        rest = [position for position in range(9) if position not in first]
        for second in itertools.combinations(rest, 3):
            view = {
                *((p, frozenset({0, 1})) for p in first),
                *((p, frozenset({0})) for p in second),
                *((p, frozenset({1})) for p in rest if p not in second),
            }
            found = learned(view, range(2), committee, tau + 1, 1)
            one = frozenset({0, 1})
            worst = max(worst, beyond(found, range(2), one, 1))
            if leaks and worst:
                break
    assert bool(worst) is leaks
