"""Virtual clients a second: fedsys against pfl-research, Flower, a plain loop and the bound.

    python -m simulations.benchmarks.clients_per_second --work W2 --engines fedsys,nvflare,loop

Every engine gets the same model, initial weights, data, batches and hyperparameters, and the same
cores. Engines take turns (A B A B ...), each turn in a fresh process; a turn's first round, which
includes set-up and cold caches, is reported separately. fedsys clips and adds the noise of
differential privacy, if the work has any; the others only train and take a mean. ``bound`` is the
rate that the work's least products alone would allow, at the rates that the same kernels reach on
all cores in the same turn, also in the sizes that the work has (`peers/bound.py` says how they are
found). Next to the speed stands the largest difference of some clients' updates from a plain loop's
in float64. (Adam divides by values that may be almost zero, so in float32 the loop itself differs
by thousandths.)

Clients may hold different amounts of data, and fedsys' whole job and Flower draw their own cohorts.
So a rate is examples a second divided by the population's mean: clients of average size. An engine
that cannot run a work is refused with one line, and the others run; a turn that a peer's simulator
does not finish is run again, at most twice. ``make bench`` installs the
peers in an environment of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from client.training import LocalConfig, Trainer
from fedsys import config, tasks
from fedsys.config import Config
from fedsys.errors import FedsysError
from fedsys.wire.assignment import batch_seed
from simulations.benchmarks.machine import machine
from simulations.benchmarks.peers.deal import deal
from simulations.benchmarks.peers.limits import refusals
from simulations.benchmarks.peers.work import Work, train_client, updates
from simulations.engine.layout import cores
from simulations.setting import partition_of

__all__ = ["main"]

ENGINES = ("fedsys", "ideal", "engine", "pfl", "flwr", "nvflare", "loop", "bound")
MEANING = {
    "fedsys": "fedsys, whole job, protocol float, {privacy}",
    "ideal": "fedsys, whole job, integers mod 2^32 (ideal), {privacy}",
    "engine": "fedsys, engine alone, protocol float, {privacy}",
    "pfl": "pfl-research 0.6, plain training",
    "flwr": "Flower 1.42 on Ray, plain training",
    "nvflare": "NVFlare 2.9 simulator, plain training",
    "blazefl": "BlazeFL 3.0",
    "loop": "plain loop",
    "bound": "least products at the measured rates",
    "called": "the same, as called",
}
_DERIVED = "called"  # not an engine: what `bound` also measures
_STEMS = {"pfl": "pfl_rounds", "flwr": "flower_rounds", "nvflare": "nvflare_rounds", "loop": "loop"}
_ROOT = Path(__file__).parents[2]
_PEERS = Path(__file__).parent / "peers"
_TIMEOUT = 1800.0
_ATTEMPTS = 3
"""How often a peer may try to finish a turn: NVFlare's simulator sometimes ends early."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _parser().parse_args(arguments)
    engines = options.engines.split(",")
    known = [engine for engine in MEANING if engine != _DERIVED]
    if unknown := sorted(set(engines) - set(known)):
        raise SystemExit(f"--engines: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for work in options.work.split(","):
        kept = options.out / f"clients_per_second_{work.lower()}.json"
        if options.resume and kept.exists():
            print(table(json.loads(kept.read_text())))
            continue
        try:
            result = measure(work.lower(), engines, options)
        except FedsysError as error:
            raise SystemExit(f"{work}: {error}") from None
        plot(result, kept.with_suffix(".png"))
        kept.write_text(json.dumps(result, indent=1))
        print(table(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", default="W2", help="W1 to W6, separated by commas")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=6, help="rounds a turn, the first included")
    parser.add_argument(
        "--own-rounds",
        type=int,
        default=0,
        help="rounds of fedsys, if --rounds is too short to time",
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of pfl and loop; 0 finds the faster"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEDSYS_DATA", "data")))
    parser.add_argument("--peers", type=Path, default=_ROOT / ".venv-bench" / "bin" / "python")
    parser.add_argument("--nvflare", type=Path, default=_ROOT / ".venv-nvflare" / "bin" / "python")
    parser.add_argument(
        "--nvflare-sites", type=int, default=cores(), help="processes of NVFlare's simulator"
    )
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument(
        "--resume", action="store_true", help="keep the works whose result --out already holds"
    )
    return parser


def measure(work: str, engines: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure all turns of one work."""
    settings = [
        f"rounds.count={options.own_rounds or options.rounds}",
        "evaluation.data=none",
        f"engine.processes={cores()}",  # the choice of a job with more rounds
        *options.set,
    ]
    job = config.load(work, settings)
    peers = {"pfl": options.peers, "flwr": options.peers, "nvflare": options.nvflare}
    refused = refusals(job, engines, peers)
    for engine, reason in refused.items():
        print(f"{work} {engine}: {reason}", file=sys.stderr, flush=True)
    engines = [engine for engine in engines if engine not in refused]
    if not engines:
        raise SystemExit(f"--engines {','.join(refused)}: none of them can run {work}")
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dealt = deal(
            job, options.data, folder, rounds=max(options.rounds, 2), everyone="flwr" in engines
        )
        flops = flops_per_client(dealt)
        for protocol in ("float", "ideal"):
            chosen = config.load(work, [*settings, f"aggregation.protocol={protocol}"])
            (folder / f"{protocol}.toml").write_text(config.dump(chosen))
        threads = _threads(dealt, folder, engines, options)
        for _ in range(options.turns):
            for engine in engines:
                command = _command(engine, folder, options, threads.get(engine, 1))
                turn = _turn(command, folder, _ATTEMPTS if engine in peers else 1)
                found[engine].append(turn)
                if engine == "bound":
                    found.setdefault(_DERIVED, []).append(_as_called(turn, dealt))
                rate = _steady(turn, dealt.examples_per_client)
                # One line a turn, so that nothing measured is lost if the run is cut short.
                print(f"{work} {engine}: {rate:.4g} clients/s", file=sys.stderr, flush=True)
        equal = _equality(job, dealt, options.data, folder, found)
    return {
        "work": work,
        "engines": {
            engine: _summary(turns, dealt.examples_per_client) for engine, turns in found.items()
        },
        "refused": refused,
        "equality": equal,
        "population": dealt.clients,
        "cohort": dealt.cohort,
        "examples_per_client": dealt.examples_per_client,
        "flops_per_client": flops,
        "privacy": job.privacy.mechanism,
        "threads": threads,
        "machine": machine(),
        "command": " ".join(["python -m simulations.benchmarks.clients_per_second", *sys.argv[1:]]),
    }


def flops_per_client(work: Work) -> float:
    """Floating-point operations of an average client's local training, forward and backward.

    The cost of matrix products is proportional to their rows, so one client's count is scaled to
    the average client.
    """
    client = work.checked[0]
    with FlopCounterMode(display=False) as counter:
        train_client(work, work.task.init_model(work.seed).train(), client)
    held = max(work.examples([client]), 1)
    return float(counter.get_total_flops()) * work.examples_per_client / held


def _command(engine: str, folder: Path, options: argparse.Namespace, threads: int) -> list[str]:
    if engine in ("fedsys", "ideal", "engine"):
        how = "engine" if engine == "engine" else "job"
        toml = folder / ("ideal.toml" if engine == "ideal" else "float.toml")
        return [sys.executable, str(_PEERS / "own.py"), how, str(toml), str(options.data), "OUT"]
    if engine == "bound":
        return [sys.executable, str(_PEERS / "bound.py"), str(folder), "OUT"]
    script = f"{_STEMS[engine]}.py"
    python = {"loop": sys.executable, "nvflare": str(options.nvflare)}.get(
        engine, str(options.peers)
    )
    last = options.nvflare_sites if engine == "nvflare" else threads
    return [python, str(_PEERS / script), str(folder), str(options.rounds), "OUT", str(last)]


def _turn(command: Sequence[str], folder: Path, attempts: int = 1) -> dict[str, Any]:
    """Run one turn in a process of its own; returns what it measured."""
    out = folder / f"{Path(command[1]).stem}.json"
    full = [str(out) if part == "OUT" else part for part in command]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "FLWR_TELEMETRY_ENABLED": "0"}
    environment.pop("OMP_NUM_THREADS", None)
    for left in reversed(range(attempts)):
        out.unlink(missing_ok=True)
        done = subprocess.run(
            full, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        if not done.returncode and out.exists():
            break
        if not left:
            raise SystemExit(f"{' '.join(full)} failed:\n{done.stderr[-4000:]}")
        last = (done.stderr.strip().splitlines() or ["it wrote no result"])[-1]
        print(f"{out.stem}: {last}; the turn is run again", file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _as_called(bound: Mapping[str, Any], work: Work) -> dict[str, Any]:
    """The turn of `bound` at the rate of its products as called."""
    rate = bound["engine"]["called"]
    return {**bound, "examples": [0, work.examples_per_client * rate]}


def _threads(
    work: Work, folder: Path, engines: Sequence[str], options: argparse.Namespace
) -> dict[str, int]:
    """The faster number of threads on this work, for each engine that has one process."""
    if options.threads:
        return dict.fromkeys(("pfl", "loop"), options.threads)
    best = {}
    for engine in sorted(set(engines) & {"pfl", "loop"}):
        rates = {}
        for threads in {1, cores()}:
            short = argparse.Namespace(**{**vars(options), "rounds": 2})
            turn = _turn(_command(engine, folder, short, threads), folder)
            rates[threads] = _steady(turn, work.examples_per_client)
        best[engine] = max(rates, key=lambda threads: rates[threads])
    return best


def _steady(turn: Mapping[str, Any], size: float) -> float:
    """Clients of the mean size per second, without the first round."""
    return float(sum(turn["examples"][1:]) / size / sum(turn["seconds"][1:]))


def _cpu_ms(turn: Mapping[str, Any], size: float) -> float:
    """CPU milliseconds per client of the mean size, between the first reading and the last."""
    (first, began), (last, ended) = turn["cpu"][0], turn["cpu"][-1]
    return float(1000 * (ended - began) * size / max(sum(turn["examples"][first:last]), 1))


def _summary(turns: Sequence[Mapping[str, Any]], size: float) -> dict[str, Any]:
    rates = [_steady(turn, size) for turn in turns]
    return {
        "clients_per_second": statistics.median(rates),
        "turns": rates,
        "first_round_seconds": statistics.median(turn["seconds"][0] for turn in turns),
        "cpu_ms_per_client": statistics.median(_cpu_ms(turn, size) for turn in turns),
        "memory": max(turn["memory"] for turn in turns),
        "engine": turns[-1].get("engine"),
    }


def _equality(
    job: Config,
    work: Work,
    data: Path,
    folder: Path,
    turns: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
    """By engine, the largest difference of a checked client's update from the plain loop's in
    float64, relative to the update's largest entry."""
    exact = updates(work, exact=True)
    found = {
        engine: _own(job, work, data, turns[engine][-1]["engine"])
        for engine in ("fedsys", "ideal", "engine")
        if engine in turns
    }
    for engine, stem in _STEMS.items():
        if engine in turns:
            found[engine] = np.load(folder / f"{stem}.npy")
    scale = np.abs(exact).max(axis=1)
    return {
        name: float((np.abs(moved - exact).max(axis=1) / scale).max())
        for name, moved in found.items()
    }


def _own(job: Config, work: Work, data: Path, engine: Mapping[str, Any]) -> NDArray[np.float64]:
    """(checked, d) updates of the checked clients on the path that the engine took."""
    task = work.for_check().task
    held = task.clients(tasks.DataSource.locate(data))
    partition = partition_of(job, held)
    trainer = Trainer(
        task,
        LocalConfig(**job.local.model_dump()),
        path=engine["path"],
        chunk=engine["chunk"],
        seed=work.seed,
    )
    return trainer.train(
        trainer.initial_weights(),
        held.train,
        [partition.indices_of(client) for client in work.checked],
        [batch_seed(work.seed, 1, client) for client in work.checked],
    ).astype(np.float64)


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    rates = {name: found["clients_per_second"] for name, found in result["engines"].items()}
    privacy = "clipping" if result["privacy"] == "none" else "clipping and noise"
    meaning = {name: words.format(privacy=privacy) for name, words in MEANING.items()}
    base = rates.get("fedsys") or rates.get("engine")
    lines = [
        f"### {result['work'].upper()}",
        "",
        f"{result['population']:,} clients, {result['cohort']:,} a round, of "
        f"{result['examples_per_client']:.4g} examples on average",
        "",
        "| engine | clients/s | turns | fedsys is | first round s | CPU ms/client | memory MB | "
        "update differs by |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in result["engines"].items():
        turns = " ".join(f"{rate:.3g}" for rate in found["turns"])
        ratio = f"{base / rates[name]:.2f}x" if base else ""
        differs = result["equality"].get(name)
        lines.append(
            f"| {meaning[name]} | {rates[name]:.4g} | {turns} | {ratio} | "
            f"{found['first_round_seconds']:.2f} | {found['cpu_ms_per_client']:.3g} | "
            f"{found['memory'] / 1e6:.0f} | {'' if differs is None else f'{differs:.1e}'} |"
        )
    lines += [f"| {meaning[name]} | refused | | | | | | |" for name in result["refused"]]
    for name, reason in result["refused"].items():
        lines += ["", f"{name}: {reason}"]
    where = result["machine"]
    lines += [
        "",
        f"{where['processor']}, {where['cores']} cores, load {where['load']:.1f}, torch "
        f"{where['torch']}; `{result['command']}`",
        "",
    ]
    return "\n".join(lines)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Plot the rates as bars on a logarithmic scale."""
    from matplotlib.figure import Figure

    names = list(result["engines"])
    rates = [result["engines"][name]["clients_per_second"] for name in names]
    figure = Figure(figsize=(7, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        names, rates, color=["#2563eb" if n in ENGINES[:3] else "#94a3b8" for n in names]
    )
    axes.bar_label(bars, labels=[f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates])
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("virtual clients a second")
    axes.set_title(result["work"].upper())
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
