"""Whatever is wrong with the input: one line that names it and the fix, exit status 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedsys.cli import main
from tests.e2e.conftest import CommandLine

CASES = [
    (("simulate", "no-such-recipe"), ["no-such-recipe", "quickstart"]),
    (("simulate", "--set", "rounds.cuont=3"), ["rounds.cuont", "count"]),
    (("simulate", "--set", "rounds.count=many"), ["rounds.count", "many"]),
    (("simulate", "--set", "privacy.delta=1.5"), ["privacy.delta", "1.5"]),
    (("simulate", "--set", "cohort.expected=5000"), ["cohort.expected = 5000", "1437"]),
    (("simulate", "--set", "task.name=digts"), ["digts", "digits"]),
    (("simulate", "--set", "task.name=nowhere:Task"), ["nowhere"]),
    (("simulate", "--set", "task.name=mnist"), ["mnist.npz", "--data"]),
    (("simulate", "--set", "server.strategy=fedavgn"), ["fedavgn", "fedavg"]),
    (("simulate", "--set", "aggregation.modulus_bits=8"), ["modulus_bits", "8"]),
    (("simulate", "--set", "population.partition=by-column"), ["by-column"]),
    (("simulate", "--device", "cuda:7"), ["--device cuda:7"]),
    (("simulate", "--device", "abacus"), ["--device abacus"]),
    (("simulate", "--data", "missing-folder", "--set", "task.name=mnist"), ["missing-folder"]),
    (("simulate", "--resume", "nowhere"), ["nowhere", "no run here"]),
    (("simulate", "--resume", "nowhere", "--seed", "3"), ["--resume", "leave out"]),
    (("simulate", "--out", "/dev/null/run"), ["/dev/null/run", "choose another folder"]),
    (("simulate", "--out", "/sys/run"), ["/sys/run", "choose another folder"]),
    (("audit", "nowhere"), ["nowhere"]),
    (("publish", "nowhere", "out"), ["nowhere"]),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDSYS_DATA", raising=False)


class Terminal:
    """Runs ``fedsys`` in this process, as its entry point does."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._patch = patch

    def __call__(self, *arguments: str | Path) -> tuple[int, list[str]]:
        """The exit status and the lines on standard error."""
        self._patch.setattr(sys, "argv", ["fedsys", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        code = leaving.value.code
        return int(code or 0), self._capsys.readouterr().err.strip().splitlines()


@pytest.fixture
def fedsys_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


@pytest.mark.parametrize(("command", "fragments"), CASES, ids=lambda value: " ".join(value))
def test_one_line_that_names_it(
    fedsys_here: Terminal, command: tuple[str, ...], fragments: list[str]
) -> None:
    code, lines = fedsys_here(*command)
    assert code == 2
    assert len(lines) == 1, lines
    for fragment in fragments:
        assert fragment in lines[0]
    assert not Path("runs").exists()


def table(name: str, rows: list[str]) -> str:
    Path(name).write_text("\n".join(["height,weight,label", *rows]) + "\n")
    return name


def tabular(fedsys_here: Terminal, path: str, *settings: str) -> tuple[int, str]:
    options = f'{{path = "{path}", label = "label"}}'
    usual = [
        "task.name=tabular", f"task.options={options}", "privacy.mechanism=none",
        "rounds.count=1", "cohort.expected=4", "aggregation.protocol=ideal",
        "population.partition=iid",
    ]  # fmt: skip
    chosen = [word for setting in (*usual, *settings) for word in ("--set", setting)]
    code, lines = fedsys_here("simulate", *chosen, "--out", "run")
    return code, lines[-1]


def test_data_that_is_not_a_number_is_named(fedsys_here: Terminal) -> None:
    rows = [f"{i},{2 * i},{i % 2}" for i in range(40)]
    rows[7] = "nan,3,1"
    code, line = tabular(fedsys_here, table("nan.csv", rows), "population.clients=8")
    assert code == 2
    assert "height" in line


def test_more_clients_than_examples(fedsys_here: Terminal) -> None:
    path = table("few.csv", [f"{i},{i},{i % 2}" for i in range(20)])
    code, line = tabular(fedsys_here, path, "population.clients=500")
    assert code == 2
    assert "500" in line


def test_clients_of_one_class_train(fedsys_here: Terminal) -> None:
    path = table("skew.csv", [f"{i},{i},{i % 2}" for i in range(60)])
    shards = ("population.partition=shards", "population.shards=1", "population.clients=10")
    code, line = tabular(fedsys_here, path, *shards)
    assert code == 0, line
    assert Path("run/summary.json").is_file()


OWN_TASK = """
import torch
from fedsys.tasks import Examples, FederatedData

class Task:
    name = "own"
    def init_model(self, seed):
        torch.manual_seed(seed)
        return torch.nn.Linear(2, 2)
    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    def metrics(self, outputs, targets):
        return {"accuracy": (outputs.argmax(1) == targets).float()}
    def clients(self, source):
        x, y = torch.randn(60, 2), torch.arange(60) % 2
        natural = torch.arange(60) // 6
        DAMAGE
        examples = Examples(x=x, y=y)
        return FederatedData(train=examples, test=Examples(x=x[6:], y=y[6:]), natural=natural)
"""


def own(fedsys_here: Terminal, module: str, damage: str) -> tuple[int, list[str]]:
    Path(f"{module}.py").write_text(OWN_TASK.replace("DAMAGE", damage))
    settings = [
        f"task.name={module}:Task", "population.partition=by-column", "cohort.expected=10",
        "rounds.count=2", "privacy.mechanism=none", "aggregation.protocol=ideal",
    ]  # fmt: skip
    chosen = [word for setting in settings for word in ("--set", setting)]
    return fedsys_here("simulate", *chosen, "--out", "run")


def test_a_client_whose_data_is_not_a_number_counts_as_zero(fedsys_here: Terminal) -> None:
    code, lines = own(fedsys_here, "own_nan", "x[:6] = float('nan')")
    assert code == 0, lines
    assert any("not finite" in line and "zero" in line for line in lines), lines


def test_a_label_that_the_loss_does_not_take_is_named(fedsys_here: Terminal) -> None:
    code, lines = own(fedsys_here, "own_label", "y[:6] = 7")
    assert code == 2
    assert "training example 0 has the label 7" in lines[-1]
    assert len([line for line in lines if line.startswith("error")]) == 1


def test_a_shadowed_package_is_one_clear_line(fedsys: CommandLine) -> None:
    shadow = fedsys.folder / "shadow"
    shadow.mkdir()
    (shadow / "client.py").write_text("mine = True\n")
    path = f"{shadow}:{fedsys.environment['PYTHONPATH']}"
    finished = fedsys.run("doctor", PYTHONPATH=path)
    assert finished.returncode == 2
    assert "client" in finished.stderr
    assert "rename" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1
