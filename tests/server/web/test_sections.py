"""What the operator's page is told, from the database, the sessions and the runs' folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fedsys.privacy import guaranteed_epsilon, read_ledger, replay
from fedsys.privacy.accounting.adding import Standing, composed, promised_part
from fedsys.privacy.ledger import read_private
from fedsys.report import figures
from fedsys.run_folder import RunFolder, plain_json
from server.deployed.fleet import Fleet, Link
from server.home.folder import Home
from server.home.state import NodeRow, State
from server.web.sections import OperatorSections
from tests.server.web.scene import NOW, Scene


def sections_of(scene: Scene) -> dict[str, Any]:
    found = OperatorSections(scene.home, scene.state, scene.fleet, now=lambda: NOW).read()
    json.dumps(plain_json(found), allow_nan=False)
    return found


def test_the_fleet_is_shown_with_those_first_that_need_somebody(scene: Scene) -> None:
    scene.fleet.copies[3] = "node 3: a second agent\x1b[31m with this device's keys"
    found = sections_of(scene)
    assert found["page"]["counts"] == {
        "devices": 6,
        "connected": 4,
        "away": 2,
        "pending": 0,
        "revoked": 1,
        "attention": 2,
    }
    devices = {each["name"]: each for each in found["fleet"]["devices"]}
    assert [each["name"] for each in found["fleet"]["devices"]][:3] == [
        "clinic-south",
        "clinic-west",
        "clinic-east",
    ]
    assert "\x1b" not in devices["clinic-south"]["warnings"][0]
    assert devices["clinic-west"]["warnings"] == [
        "its certificate expires soon; a device that connects renews it"
    ]
    assert devices["clinic-west"]["expires"] == round(NOW + 9 * 86_400)
    assert devices["clinic-old"]["status"] == "revoked"
    assert devices["clinic-old"]["warnings"] == []
    away = devices["lab-basel"]
    assert (away["connected"], away["seen"]) == (False, round(NOW - 3.2 * 3600 * 5))
    assert away["refusal"]["reason"].startswith("the policy of lab-basel")
    assert devices["clinic-east"]["version"] == "0.1.0"
    assert devices["clinic-east"]["labels"] == ["ward", "europe"]


def test_a_job_is_shown_with_what_its_ledger_says(scene: Scene, runs: list[Path]) -> None:
    found = sections_of(scene)
    assert found["page"]["order"] == ["77a0c4be1f55", "0de2f3c4a911", "5b1c09aa71d2"]
    assert found["page"]["queue"] == {"completed": 1, "running": 1, "waiting": 1}
    going = found["job/0de2f3c4a911"]
    stated = RunFolder(runs[1]).read_summary()["privacy"]["epsilon"]
    shown = {each["view"]: each["epsilon"] for each in going["views"]}
    assert shown == {view: figures.epsilon(value) for view, value in stated.items()}
    assert going["head"] == RunFolder(runs[1]).read_summary()["ledger_head"]
    assert [chart["title"] for chart in going["charts"]][-1] == "Privacy spent (ε), by view"
    assert (going["status"], going["round"], going["rounds"]) == ("running", 12, 40)
    assert {each["device"] for each in going["refusals"]} == {"lab-basel", "clinic-north"}
    waiting = found["job/77a0c4be1f55"]
    assert waiting["stage"].startswith("waiting: 4 of 6 connected")
    assert (waiting["views"], waiting["charts"], waiting["head"]) == ([], [], "")
    total = found["page"]["spent"]
    assert total["budget"] == "12.0"
    replayed = [
        replay(read_ledger(run / "ledger.jsonl"), read_private(run / "private.jsonl")[0])[0]
        for run in runs
    ]
    for each in total["views"]:
        both = composed([accountant.standing(each["view"]) for accountant in replayed])
        assert each["epsilon"] == figures.epsilon(both)
    over, going_on = replayed
    plan = going_on.plan
    assert plan.guarantee == "outsider"
    part = promised_part(plan, "outsider")
    all_rounds = Standing.of(plan, "outsider", part, plan.budget or guaranteed_epsilon(plan))
    against = composed([over.standing("outsider", 0.97), all_rounds])
    assert total["promised"] == figures.epsilon(against)


def test_what_holds_all_jobs_is_shown(scene: Scene) -> None:
    scene.hold("restored on 2026-01-01 from a backup")
    assert sections_of(scene)["page"]["held"] == ["restored on 2026-01-01 from a backup"]


def test_witnesses_are_shown_with_what_they_cosigned(scene: Scene) -> None:
    found = sections_of(scene)
    lines = found["job/0de2f3c4a911"]["lines"]
    assert found["job/0de2f3c4a911"]["witnesses"] == [
        {"name": name, "size": lines - behind, "at": int(NOW - 60 - late), "asked": True}
        for name, behind, late in (
            ("witness.uni-basel.example", 0, 0),
            ("witness.ngo.example", 6, 400),
        )
    ]
    ended = found["job/5b1c09aa71d2"]["witnesses"]
    assert [(each["size"], each["asked"]) for each in ended] == [(None, True)] * 2


def test_folders_that_cannot_be_read_leave_the_rest(scene: Scene) -> None:
    ledger = scene.home.jobs / "0de2f3c4a911" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"reserve"', b'"reverse"', 1))
    shutil.rmtree(scene.home.jobs / "5b1c09aa71d2")
    found = sections_of(scene)
    assert "ledger line" in found["job/0de2f3c4a911"]["problem"]
    assert found["job/0de2f3c4a911"]["status"] == "running"
    assert found["job/5b1c09aa71d2"]["charts"] == []


def test_a_large_fleet_is_cut_and_counted(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "c", hosts=["localhost"])
    state, fleet = State.open(home.path), Fleet()
    with state.transaction() as session:
        for number in range(1, 2502):
            identity = number.to_bytes(32, "big")
            session.add(
                NodeRow(
                    id=number,
                    name=f"<b>{number}</b>",
                    identity=identity,
                    status="active",
                    enrolled_at=0.0,
                )
            )
    fleet.open(Link(node=2501, version="1"))
    found = OperatorSections(home, state, fleet).read()
    assert (len(found["fleet"]["devices"]), found["fleet"]["more"]) == (2000, 501)
    assert found["page"]["counts"]["connected"] == 1
    assert found["page"]["spent"]["budget"] == ""
    state.close()
