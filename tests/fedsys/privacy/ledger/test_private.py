"""The private part: what the ledger committed to, and cohorts too long for a list."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsys.errors import LedgerError
from fedsys.privacy import read_ledger
from fedsys.privacy.ledger import canonical, read_private
from fedsys.privacy.ledger.packing import pack, pack_increasing, unpack, unpack_increasing
from fedsys.privacy.ledger.private import check_commitments
from fedsys.privacy.plan import PrivacyPlan
from tests.fedsys.privacy.ledger.ledgers import create, reopen, write_run


@pytest.mark.parametrize("name", ["sampled", "survivors", "participations", "salt"])
def test_private_lines_must_fit_their_commitments(
    name: str, tmp_path: Path, plan: PrivacyPlan
) -> None:
    write_run(tmp_path, plan)
    view = read_ledger(tmp_path / "ledger.jsonl")
    private, _ = read_private(tmp_path / "private.jsonl")
    line = private[3]
    line[name] = "00" * 32 if name == "salt" else line[name][1:]
    with pytest.raises(LedgerError, match=r"round 3: .* is not what the ledger committed to"):
        check_commitments(view.rounds[2], line)
    del line[name]
    with pytest.raises(LedgerError, match="round 3"):
        check_commitments(view.rounds[2], line)


class TestLargeCohorts:
    """Cohorts too long for a list are packed; the commitments are to the list all the same."""

    @pytest.mark.parametrize(
        ("cohort", "population"),
        [(1024, 10**6), (1025, 10**6), (10_000, 10**7), (200_000, 10**7), (100_000, 10**11)],
    )
    def test_they_read_back(
        self, cohort: int, population: int, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        step = population // cohort
        sampled = [number * step + number % 7 for number in range(cohort)]
        survivors = [client for client in sampled if client % 13]
        with create(tmp_path, plan) as ledger:
            ledger.reserve(1, {"event": plan.event().to_json()})
            ledger.commit(1, {}, sampled=sampled, survivors=survivors)
        raw = (tmp_path / "private.jsonl").read_bytes()
        assert (b'"sampled":[' in raw) == (cohort <= 1024)
        assert len(raw) < 2000 + max(20 * 1024, 14 * cohort)
        private, torn = read_private(tmp_path / "private.jsonl")
        assert torn == b""
        assert private[1]["sampled"] == sampled
        assert private[1]["survivors"] == survivors
        assert private[1]["participations"] == [1] * len(survivors)
        with reopen(tmp_path) as ledger:  # checks the commitments
            assert sum(ledger.participations.values()) == len(survivors)

    def test_packed_and_listed_cohorts_have_one_commitment(
        self, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        """A list that an earlier version wrote, longer than a ledger's line may be, is read too."""
        sampled = list(range(0, 500_000, 5))
        with create(tmp_path, plan) as ledger:
            ledger.reserve(1, {"event": plan.event().to_json()})
            ledger.commit(1, {}, sampled=sampled, survivors=sampled)
        path = tmp_path / "private.jsonl"
        private, _ = read_private(path)
        packed = path.read_bytes()
        path.write_bytes(canonical(private[1]) + b"\n")
        assert len(path.read_bytes()) > 1 << 20 > len(packed)
        again, _ = read_private(path)
        assert again[1] == private[1]
        check_commitments(read_ledger(tmp_path / "ledger.jsonl").rounds[0], again[1])

    def test_what_cannot_be_read_back_is_not_written(
        self, tmp_path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedsys.privacy.ledger.private.MAX_PRIVATE_LINE_BYTES", 4000)
        with create(tmp_path, plan) as ledger:
            ledger.reserve(1, {"event": plan.event().to_json()})
            with pytest.raises(LedgerError, match="round 1: its private line has"):
                ledger.commit(1, {}, sampled=range(2000), survivors=range(2000))
        assert (tmp_path / "private.jsonl").read_bytes() == b""

    @settings(deadline=None)
    @given(st.lists(st.integers(0, (1 << 42) - 1), max_size=50))
    def test_any_numbers_survive_packing(self, numbers: list[int]) -> None:
        assert unpack(pack(numbers)).tolist() == numbers
        ids = sorted(set(numbers))
        assert unpack_increasing(pack_increasing(ids)).tolist() == ids

    @given(st.binary(max_size=30))
    def test_a_text_that_unpacks_is_the_only_one(self, octets: bytes) -> None:
        text = base64.b64encode(octets).decode()
        with contextlib.suppress(LedgerError):
            assert pack(unpack(text)) == text

    @pytest.mark.parametrize(
        "text", ["A", "gA==", "gAA=", "AA", "AB==", " AA==", "é", "////////AQ=="]
    )
    def test_malformed_texts_are_refused(self, text: str) -> None:
        with pytest.raises(LedgerError, match="packed number"):
            unpack(text)

    @pytest.mark.parametrize("numbers", [[-1], [1 << 42], [3, 3], [4, 2]])
    def test_what_is_no_list_of_clients_is_not_packed(self, numbers: list[int]) -> None:
        with pytest.raises(LedgerError, match="packed numbers must be"):
            pack_increasing(numbers)
