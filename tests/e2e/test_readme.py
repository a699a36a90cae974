"""Every command that README and guides show is run, in its order, and does what the text says."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("simulate", "deploy", "audit", "tune", "own-task", "graphs")
PAGES = ("README", *(f"docs/{guide}" for guide in GUIDES))
TEXTS = {page: (ROOT / f"{page}.md").read_text(encoding="utf-8") for page in PAGES}
MAKE = {"demo", "test", "test-all", "bench", "lint", "setup"}
PASSED = ("FEDSYS_DATA", "COVERAGE_PROCESS_CONFIG")
SHORTER = ["--set", "rounds.count=3"]
"""The commands are run as they stand, but with few rounds: the whole job has tests of its own."""


DEPLOYMENT = ("coordinator", "job", "agent")
EXTRAS = ("runs/tuned", "runs/tuned/best.toml", "runs/best")
"""What the commands of extras read and write; they need none of the others."""


def commands() -> list[list[str]]:
    text = "\n".join(TEXTS[page] for page in PAGES)
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = [words[1] for words in commands() if words[0] == "make"]
    assert {"demo", "test"} <= set(named)
    for target in named:
        assert target in MAKE
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "RUNTIME_DIRECTORY": os.environ["RUNTIME_DIRECTORY"],
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "LANG": "C.UTF-8",
        **{key: os.environ[key] for key in os.environ if key in PASSED},
    }


def run(words: list[str], folder: Path, here: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "fedsys", *words[1:]],
        cwd=here,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def watch(words: list[str], folder: Path, here: Path) -> None:
    """A page is served until it is ended, at an address that is printed."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "fedsys", *words[1:]],
        cwd=here,
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        assert process.wait(60) == 0
    assert re.search(r" at http://127\.0\.0\.1:\d+/#token=[0-9a-f]{64}$", line), line


@pytest.mark.slow
def test_commands_run_in_their_order(tmp_path: Path) -> None:
    here, ran = tmp_path, 0
    data = os.environ.get("FEDSYS_DATA", "")
    for words in commands():
        if words[0] == "cd":
            here = here / words[1]
            continue
        if words[0] != "fedsys" or words[1] in DEPLOYMENT or "runs/silo" in words:
            continue
        if not set(words).isdisjoint(EXTRAS):
            continue
        if "DIR" in words:
            if not data:
                continue
            words = [data if word == "DIR" else word for word in words]
        if words[1] == "runs":
            watch(words, tmp_path, here)
            ran += 1
            continue
        training = words[1] == "simulate" and not {"--resume", "--replay"} & {*words}
        if "--resume" in words:
            finished = run(words, tmp_path, here)
            assert finished.returncode == 2, "a finished run is not resumed"
            assert "closed" in finished.stderr
            continue
        finished = run([*words, *SHORTER] if training else words, tmp_path, here)
        assert finished.returncode == 0, (words, finished.stderr)
        assert "Traceback" not in finished.stderr
        ran += 1
    assert ran >= 8


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_tuning_tracking_and_export_run_in_their_order(tmp_path: Path) -> None:
    steps = [words for words in commands() if not set(words).isdisjoint(EXTRAS)]
    assert [words[1] for words in steps] == ["tune", "simulate", "export"]
    for words in steps:
        finished = run([*words, *SHORTER] if words[1] != "export" else words, tmp_path, tmp_path)
        assert finished.returncode == 0, (words, finished.stderr)
        assert "Traceback" not in finished.stderr
    assert list((tmp_path / "runs" / "tensorboard").rglob("events.out.tfevents.*"))
    ledger = (tmp_path / "runs" / "best" / "ledger.jsonl").read_text(encoding="utf-8")
    assert '"runs":2' in ledger.splitlines()[0]


@contextmanager
def background(words: list[str], folder: Path) -> Iterator[None]:
    with (folder / "background.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedsys", *words[1:]],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)
                raise


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def listening(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("localhost", port)) == 0


def set_web(settings: Path, address: str) -> None:
    """What the page says to write, at a port that is free."""
    line = 'web = "localhost:7480"'
    assert line in TEXTS["docs/deploy"]
    text = settings.read_text("utf-8")
    assert 'web = ""' in text
    settings.write_text(text.replace('web = ""', line.replace("localhost:7480", address)), "utf-8")


@pytest.mark.slow
def test_the_deployment_runs_as_it_is_written(tmp_path: Path) -> None:
    port, web, last = free_port(), f"localhost:{free_port()}", ""
    steps = [words for words in commands() if words[1] in DEPLOYMENT or "runs/silo" in words]
    device = [words for words in steps if "enroll" in words or words[1] == "agent"]
    first = steps.index(device[0])
    each = [
        [word.replace("silo-0", f"silo-{n}").replace("0/3", f"{n}/3") for word in words]
        for n in range(3)
        for words in device
    ]
    steps[first : first + len(device)] = each
    with ExitStack() as running:
        for words in steps:
            words = [word.replace("localhost:7443", f"localhost:{port}") for word in words]
            words = [last if word in ("TOKEN", "ID") else word for word in words]
            if words[1:] == ["coordinator", "run", "fleet", "--listen", f"localhost:{port}"]:
                set_web(tmp_path / "fleet" / "coordinator.toml", web)
            if words[2] == "run":
                running.enter_context(background(words, tmp_path))
                deadline = time.monotonic() + 60
                while not listening(port) and time.monotonic() < deadline:
                    time.sleep(0.1)
                continue
            finished = run(words, tmp_path, tmp_path)
            log = (tmp_path / "background.log").read_text() if words[2] != "init" else ""
            assert finished.returncode == 0, (words, finished.stderr, log[-2000:])
            if "--quiet" in words:
                last = finished.stdout.strip()
            if words[1:3] == ["coordinator", "web"]:
                assert finished.stdout.startswith(f"http://127.0.0.1:{web.split(':')[1]}/#token=")
                assert listening(int(web.split(":")[1]))
    assert (tmp_path / "runs" / "silo" / "report.html").is_file()


def test_the_notebook_example_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXTS["docs/simulate"], flags=re.DOTALL)
    (code,) = (block for block in blocks if block.startswith("import fedsys\n"))
    finished = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    accuracy, epsilon = map(float, finished.stdout.split())
    assert 0 < accuracy <= 1
    assert epsilon > 0
