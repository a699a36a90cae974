"""Attacks on epochs: one upload in two sums.

Every test runs an attack twice: against the protocol, which refuses it by name, and against the
protocol without that one check, where it succeeds.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest

from secure_agg import RoundContext
from secure_agg.errors import AlreadyEndorsed, StageError, UploadReused
from secure_agg.messages import Kind
from tests.adversary.eve import COLLUDER, PARAMS, VICTIM, Eve
from tests.secure_agg.world import World, without

CONTEXT = RoundContext(job=b"job", round=1, buffers=2)


def checked() -> Eve:
    """Everybody uploaded once; every honest member checked all of it for both buffers."""
    eve = Eve(World(dataclasses.replace(PARAMS, min_included=6), context=CONTEXT))
    eve.collect()
    for id_ in eve.honest:
        for buffer in (0, 1):
            eve.world.members[id_].handle(eve.delivery(id_, eve.uploads, buffer=buffer))
    return eve


def total_of(eve: Eve, dealers: set[int], buffer: int) -> object:
    certificate = eve.certificate(eve.endorsed_by(eve.honest, dealers, buffer), buffer)
    return eve.open(dealers, eve.answers(eve.honest, dealers, certificate))


@pytest.mark.parametrize("lost", ["nothing", "process", "disk", "tmpfs"])
def test_01_overlapping_buffers(lost: str) -> None:
    """The second buffer is the first without the victim; in between, a store is put back."""

    def attack() -> tuple[list[int], Eve]:
        eve = checked()
        everybody = set(eve.uploads)
        stores = eve.world.tmpfs if lost == "tmpfs" else eve.world.disks
        before = copy.deepcopy(stores)
        first = total_of(eve, everybody, 0)
        for id_ in eve.honest if lost != "nothing" else ():
            if lost != "process":
                stores[id_] = before[id_]
            eve.world.restart(id_)
        second = total_of(eve, everybody - {VICTIM}, 1)
        return eve.difference(first, second), eve  # type: ignore[arg-type]

    with pytest.raises(UploadReused, match="upload 0 of dealer 0 is not after those summed"):
        attack()
    with without("disjoint"):
        found, eve = attack()
    assert found == eve.planted()


def test_02_a_buffer_that_the_epoch_does_not_have() -> None:
    def attack() -> bytes:
        eve = checked()
        return eve.world.members[0].handle(eve.delivery(0, eve.uploads, buffer=2))

    with pytest.raises(StageError, match="sum 2 of a session of 2"):
        attack()
    with without("buffer_of_epoch"):
        assert attack()[1] == Kind.CHECKED


def test_03_another_set_for_the_same_buffer() -> None:
    def attack() -> bytes:
        eve = checked()
        everybody = set(eve.uploads)
        first = eve.endorsed_by([0], everybody)[0]
        second = eve.endorsed_by([0], everybody - {VICTIM})[0]
        assert first != second
        return second

    with pytest.raises(AlreadyEndorsed):
        attack()
    with without("endorses_once"):
        assert len(attack()) == 64


def test_04_one_endorsement_for_both_buffers() -> None:
    """What is signed names the buffer: endorsements of one are worthless for the other."""
    eve = checked()
    everybody = set(eve.uploads)
    signed = eve.endorsed_by(eve.honest, everybody)
    half = sorted(everybody)[:6]
    assert COLLUDER not in half
    with pytest.raises(Exception, match="not endorsed here"):
        eve.world.members[0].handle(eve.certificate(signed, buffer=1))
