"""``fedsys doctor``: what is installed, what the machine has, and what would run on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsys.cli.terminal import say

__all__ = ["Diagnosis", "Line", "diagnose", "doctor"]

REQUIRED = ("numpy", "cryptography", "grpcio")
OPTIONAL = {
    "torch": "training from a task's code: a simulation, a coordinator",
    "opacus": 'unit = "example", and the audit\'s second opinion',
    "scipy": "fedsys audit",
    "dp-accounting": "fedsys audit",
    "pyarrow": "tables in .parquet",
    "SQLAlchemy": "a coordinator",
    "flwr": "the Flower host",
    "ray": "the Ray backend",
    "datasets": "task hf",
    "flwr-datasets": "task hf with a partitioner",
    "tensorboard": "--track tensorboard:DIR",
    "mlflow-skinny": "--track mlflow:URI",
    "optuna": "fedsys tune",
    "onnx": "fedsys export to .onnx",
    "safetensors": "fedsys export to .safetensors",
    "starlette": "fedsys witness run",
    "uvicorn": "fedsys witness run",
    "httpx": "a coordinator that has witnesses",
}
DATA_FILES = {
    "mnist.npz": "mnist",
    "cifar10-train.parquet": "cifar10",
    "cifar10-test.parquet": "cifar10",
    "shakespeare.parquet": "shakespeare",
}
AES_SECONDS = 0.2
DEFAULT = "quickstart"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One finding: ``state`` is "ok", "absent" (optional, harmless) or "problem"."""

    topic: str
    name: str
    value: str
    state: str = "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """All findings, and their figures for programs."""

    lines: tuple[Line, ...]
    figures: Mapping[str, Any]

    @property
    def healthy(self) -> bool:
        """Whether everything that is required is available."""
        return all(line.state != "problem" for line in self.lines)


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            help="Show what the engine would choose for this TOML file or recipe.",
            show_default="quickstart",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with data files.", show_default="$FEDSYS_DATA")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, hardware, data and what would run; exit 1 if something needed is missing."""
    diagnosis = diagnose(config=config or DEFAULT, data=data, device=device)
    if json:
        from json import dumps

        document = {
            "healthy": diagnosis.healthy,
            "findings": [asdict(line) for line in diagnosis.lines],
            **diagnosis.figures,
        }
        typer.echo(dumps(document, indent=2, ensure_ascii=False))
    else:
        _print(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def diagnose(
    environment: Mapping[str, str] | None = None,
    *,
    config: str = DEFAULT,
    data: Path | None = None,
    device: str = "auto",
) -> Diagnosis:
    """Examines this machine; missing optional parts are findings, not errors.

    Args:
        environment: where ``FEDSYS_DATA`` is looked up; the process's environment if None.
        config: the configuration for which the engine's choice is measured.
        data: folder with its data files.
        device: where it would train.

    Raises:
        ConfigError: `config` is not a configuration.
    """
    import os

    lines = [*_software(), *_own_packages()]
    hardware, figures = _hardware()
    lines += hardware
    rate = aes_ctr_rate()
    figures["aes_ctr_bytes_per_second"] = rate
    lines.append(
        Line(topic="machine", name="AES-256-CTR", value=f"{rate / 1e9:.2f} GB/s, one core")
    )
    lines += _data(os.environ if environment is None else environment)
    lines.append(_choice(figures))
    lines += _engine(config, data, device, figures)
    return Diagnosis(lines=tuple(lines), figures=figures)


def aes_ctr_rate(seconds: float = AES_SECONDS) -> float:
    """Bytes per second of the stream that masks and noise are made from, on one core."""
    import os
    import time

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(1 << 20), bytearray((1 << 20) + 15)
    done, start = 0, time.perf_counter()
    while True:
        done += encryptor.update_into(zeros, out)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return done / elapsed


def _software() -> list[Line]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import fedsys

    lines = [
        Line(topic="software", name="fedsys", value=fedsys.__version__),
        Line(topic="software", name="Python", value=platform.python_version()),
    ]
    for name in (*REQUIRED, *OPTIONAL):
        try:
            value, state = version(name), "ok"
        except PackageNotFoundError:
            use = OPTIONAL.get(name)
            value = f"not installed; only for {use}" if use else "not installed; needed"
            state = "absent" if use else "problem"
        if name == "cryptography" and state == "ok":
            value += _openssl()
        lines.append(Line(topic="software", name=name, value=value, state=state))
    return lines


def _openssl() -> str:
    try:
        from cryptography.hazmat.backends.openssl.backend import backend
    except ImportError:
        return ""
    return f" with {backend.openssl_version_text()}"


def _own_packages() -> list[Line]:
    import importlib.util

    from fedsys.cli.shadowing import OWN, check_own_packages
    from fedsys.errors import FedsysError

    lines = []
    for name in OWN:
        try:
            check_own_packages((name,))
        except FedsysError as error:
            lines.append(Line(topic="packages", name=name, value=str(error), state="problem"))
            continue
        spec = importlib.util.find_spec(name)
        where = spec.origin if spec is not None and spec.origin else "found"
        lines.append(Line(topic="packages", name=name, value=where.removesuffix("/__init__.py")))
    return lines


def _hardware() -> tuple[list[Line], dict[str, Any]]:
    import os
    import platform

    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    lines = [
        Line(topic="machine", name="system", value=f"{platform.system()} {platform.machine()}"),
        Line(topic="machine", name="cores", value=str(cores)),
    ]
    figures: dict[str, Any] = {"cores": cores, "gpus": [], "device": "cpu"}
    try:
        import psutil
    except ImportError:
        lines.append(
            Line(
                topic="machine", name="memory", value="unknown: psutil is missing", state="problem"
            )
        )
    else:
        memory = psutil.virtual_memory()
        figures["memory_bytes"] = int(memory.total)
        free = f"{memory.available / 2**30:.1f} GiB of {memory.total / 2**30:.1f} GiB free"
        lines.append(Line(topic="machine", name="memory", value=free))
    lines += _gpus(figures)
    return lines, figures


def _choice(figures: Mapping[str, Any]) -> Line:
    chosen = "the first GPU" if figures["gpus"] else f"{figures['cores']} cores"
    return Line(topic="would run", name="--device auto", value=f"{figures['device']} ({chosen})")


def _engine(name: str, data: Path | None, device: str, figures: dict[str, Any]) -> list[Line]:
    """What the engine would choose for a configuration, and which paths it cannot use."""
    from fedsys import tasks
    from fedsys.cli.would_run import choose_engine
    from fedsys.config import load
    from fedsys.errors import FedsysError

    tasks.look_beside(name)
    config = load(name)
    try:
        choice = choose_engine(config, data=data, device=device)
    except ModuleNotFoundError as error:
        value, state = f"not without the package {error.name}", "absent"
        return [Line(topic="would run", name=name, value=value, state=state)]
    except Exception as error:  # a broken driver or build must not stop the diagnosis
        said = " ".join(str(error).split())
        if not isinstance(error, FedsysError):
            said = f"{type(error).__name__}: {said}"
        return [Line(topic="would run", name=name, value=said, state="problem")]
    figures["engine"] = {"config": name, **choice.facts}
    lines = [Line(topic="would run", name=name, value=str(choice))]
    if choice.clients_per_second:
        rates = ", ".join(f"{at} {rate:.3g}" for at, rate in choice.clients_per_second.items())
        lines.append(Line(topic="would run", name="measured clients/s", value=rates))
    lines += [
        Line(topic="would run", name=f"not path {path}", value=why, state="absent")
        for path, why in choice.refused.items()
    ]
    return lines


def _gpus(figures: dict[str, Any]) -> list[Line]:
    """Names the GPUs that torch can use and sets the device that "auto" stands for."""
    try:
        import torch

        available = torch.cuda.is_available()
        found = [
            torch.cuda.get_device_properties(index)
            for index in range(torch.cuda.device_count() if available else 0)
        ]
    except ModuleNotFoundError:
        return [Line(topic="machine", name="GPU", value="not used without torch", state="absent")]
    except Exception as error:  # a broken driver or build must not stop the diagnosis
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Line(topic="machine", name="GPU", value=f"torch fails: {reason}", state="problem")]
    if not found:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
        return [Line(topic="machine", name="GPU", value=f"none (torch: {build})", state="absent")]
    figures["device"] = "cuda:0"
    figures["gpus"] = [{"name": each.name, "memory_bytes": each.total_memory} for each in found]
    return [
        Line(
            topic="machine",
            name=f"GPU {index}",
            value=f"{each.name}, {each.total_memory / 2**30:.0f} GiB",
        )
        for index, each in enumerate(found)
    ]


def _data(environment: Mapping[str, str]) -> list[Line]:
    from pathlib import Path

    named = environment.get("FEDSYS_DATA")
    if not named:
        note = "FEDSYS_DATA is not set; only tasks that read files need it"
        return [Line(topic="data", name="folder", value=note, state="absent")]
    folder = Path(named)
    if not folder.is_dir():
        return [
            Line(
                topic="data",
                name="folder",
                value=f"FEDSYS_DATA = {folder}: no such folder; correct or unset it",
                state="absent",
            )
        ]
    lines = [Line(topic="data", name="folder", value=str(folder))]
    for name, task in DATA_FILES.items():
        path = folder / name
        lines.append(
            Line(topic="data", name=name, value=f"{path.stat().st_size / 2**20:.1f} MiB")
            if path.is_file()
            else Line(
                topic="data", name=name, value=f"missing; task {task} needs it", state="absent"
            )
        )
    return lines


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("✓", "green"), "absent": ("–", "dim"), "problem": ("✗", "bold red")}
    console = Console(highlight=False)
    topic = ""
    width = max(len(line.name) for line in diagnosis.lines)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in diagnosis.lines:
        mark, style = marks[line.state]
        if not console.is_terminal:
            say(f"{mark} {line.topic:9}  {line.name:{width}}  {line.value}")
            continue
        if line.topic != topic:
            topic = line.topic
            table.add_row("", Text(topic, style="bold"), "")
        value = Text(line.value, style="" if line.state == "ok" else style)
        table.add_row(Text(mark, style=style), line.name, value)
    if console.is_terminal:
        console.print(table)
    say("nothing needed is missing" if diagnosis.healthy else "something needed is missing")
