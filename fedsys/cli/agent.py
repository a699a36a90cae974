"""``fedsys agent``: the data owner's side of a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.agent_address import set_address
from fedsys.cli.agent_approve import approve
from fedsys.cli.agent_graph import inspect
from fedsys.cli.deployment import no_core_dumps, prepare
from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from client.admission import Worker
    from client.identity import Credentials
    from client.policy import ApprovedTask, Policy
    from client.stop import Stop

__all__ = ["app"]

app = typer.Typer(help="Take part with the data of this device.", no_args_is_help=True)
app.callback()(prepare)
app.command()(inspect)
app.command()(set_address)
app.command()(approve)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The device's folder.")]


@app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The coordinator.")],
    folder: Folder,
    token: Annotated[
        str, typer.Option(help="The token from `fedsys coordinator enroll`; - reads it from stdin.")
    ],
) -> None:
    """Create this device's keys, get a certificate, and pin the roster."""
    import sys

    from client.enrollment import join as join_
    from fedsys.wire.token import JoinToken

    text = sys.stdin.readline() if token == "-" else token
    credentials = join_(address, JoinToken.decode(text), folder)
    say(f"joined as {credentials.name}, node {credentials.node}")
    say(f"next: fedsys agent run {folder} --data TASK")


@app.command()
def run(
    folder: Folder,
    data: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="TASK, or TASK=FOLDER with its files; with --graph: FILE.npz (arrays x and y), "
            "FILE.csv or FILE.parquet (a column y), or MODULE:FUNCTION.",
        ),
    ],
    graph: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train from a graph that `fedsys task export` wrote, without torch or the task's "
            "code.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What runs the graph: numpy, or ort (onnxruntime).")
    ] = "numpy",
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Part I (from 0) of N of the data, for tests.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the task; repeatable."),
    ] = None,
    options_file: Annotated[
        Path | None,
        typer.Option(
            "--options",
            metavar="FILE",
            help="A configuration whose \\[task.options] are used, such as `fedsys task schema` "
            "writes; --option takes precedence.",
        ),
    ] = None,
    procedure: Annotated[
        str,
        typer.Option(
            metavar="MODULE:ATTR",
            help="A local procedure, installed here, that jobs may name in local.procedure.",
        ),
    ] = "",
    corrupt: Annotated[
        float | None,
        typer.Option(
            help="For the policy.toml that the first run writes: fraction of a round's members "
            "that may collude with the coordinator.",
            show_default="0.1",
        ),
    ] = None,
    log: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Stay connected and take part in the jobs that policy.toml allows, until stopped."""
    from client.stop import Stop

    stop = Stop()
    stop.on_signals()  # before anything that takes long, or that must be left in a clean state

    from client.identity import Credentials
    from client.lock import exclusive
    from fedsys.cli.task_options import options_in, options_of
    from fedsys.logs import configure

    configure(log)
    no_core_dumps()
    credentials = Credentials.load(folder)
    stored = {} if options_file is None else options_in(options_file, data.partition("=")[0])
    options = {**stored, **options_of(option or [])}
    with exclusive(folder, "fedsys agent run"):
        source = _Source(data, shard, options, graph, engine, procedure, folder / "states")
        _serve(credentials, source, corrupt=corrupt, stop=stop, log=log)
    _note("stopped", log)


@dataclass(frozen=True)
class _Source:
    """What the command line says about data and code."""

    data: str
    shard: str | None
    options: dict[str, object]
    graph: Path | None
    engine: str
    procedure: str
    states: Path

    def worker(self, policy: Policy | None) -> tuple[Worker, str, ApprovedTask]:
        """The worker, the task's name, and what the policy is to approve."""
        from client.policy import ApprovedTask
        from fedsys.errors import ConfigError

        threads = policy.threads if policy is not None else 1
        if self.graph is not None:
            from fedsys.cli.agent_graph import graph_worker

            if self.shard is not None or self.options or self.procedure:
                raise ConfigError(
                    "--shard, --option, --options and --procedure are for tasks; a graph contains "
                    "its options"
                )
            made = graph_worker(self.graph, data=self.data, engine=self.engine, threads=threads)
            graph = made.graph.graph
            return made, graph.task, ApprovedTask(sha256=made.sha256, options=graph.options)

        import torch
        from threadpoolctl import threadpool_limits

        from client.device_states import DeviceStates
        from client.local_data import DataSpec, LocalData

        torch.set_num_threads(threads)
        threadpool_limits(threads, user_api="blas")  # numpy's, until the process ends
        gpu = policy is not None and policy.gpu and torch.cuda.is_available()
        worker = LocalData(
            DataSpec.parse(self.data, self.shard),
            options=self.options,
            device="cuda" if gpu else "cpu",
            procedure=self.procedure,
            states=DeviceStates(self.states),
        )
        return worker, worker.spec.task, ApprovedTask(sha256=worker.sha256, options=self.options)


def _note(text: str, log: str) -> None:
    """A line for people, or one of JSON where all lines are."""
    if log == "json":
        import logging

        logging.getLogger(__name__).info("%s", text)
    else:
        say(text, err=True)


def _serve(
    credentials: Credentials, source: _Source, *, corrupt: float | None, stop: Stop, log: str
) -> None:
    import os

    from client.answer_time import AnswerTime
    from client.approval import Candidate, remember
    from client.grpc_host import ConnectionHost
    from client.policy import Policy
    from client.session import Session
    from fedsys.errors import ConfigError
    from fedsys.secret_files import write_secret

    path = credentials.folder / "policy.toml"
    policy = Policy.load(path) if path.exists() else None
    if corrupt is not None and not 0 <= corrupt < 1:
        raise ConfigError(f"--corrupt {corrupt:g}: give a fraction from 0 to below 1")
    if corrupt is not None and policy is not None and policy.corrupt != corrupt:
        raise ConfigError(
            f"--corrupt {corrupt:g}: {path} already says corrupt = {policy.corrupt:g}; change it "
            f"there"
        )
    worker, task, approved = source.worker(policy)
    if policy is None:
        policy = Policy.fresh(task, approved, corrupt=0.1 if corrupt is None else corrupt)
        write_secret(path, policy.dump().encode())
        files = getattr(worker, "files", {"the graph": approved.sha256})
        remember(
            credentials.folder,
            Candidate(task=task, sha256=approved.sha256, options=approved.options, files=files),
        )
        _note(f"wrote {path}: it allows only task {task}", log)
    if policy.nice:
        os.nice(policy.nice)
    session = Session(
        credentials=credentials,
        worker=worker,
        policy=lambda: Policy.load(path),
        answer_time=AnswerTime(sleep=stop.wait),
        buffered=True,
    )
    ConnectionHost(session, stop=stop).run()


@app.command()
def status(folder: Folder) -> None:
    """Show what the agent is doing, and what it has spent by its own count."""
    import json

    from client.identity import Credentials
    from client.lock import holder
    from fedsys.wire.roster import fingerprint

    credentials = Credentials.load(folder)
    say(f"{credentials.name}, node {credentials.node}, at {credentials.coordinator}")
    say(f"identity {fingerprint(credentials.identity.public_bytes)}")
    state, warning = "not running", ""
    who = holder(folder)
    if who is not None and not who.startswith("fedsys agent run"):
        state = f"{who} is running in this folder"
    elif who is not None:
        try:
            shown = json.loads((folder / "status.json").read_text("utf-8"))
            state = f"{shown['connection']}, {shown['activity']}"
            warning = str(shown.get("warning", ""))
        except (OSError, ValueError, KeyError):
            state = "starting"
    say(state + (", paused" if (folder / "paused").exists() else ""))
    if warning:
        say(f"the coordinator warns: {warning}")
    expires = credentials.certificate.not_valid_after_utc
    say(f"certificate until {expires:%Y-%m-%d}")
    path = folder / "policy.toml"
    if path.exists():
        from client.journal import Journal
        from client.policy import Policy

        policy = Policy.load(path)
        journal = Journal(folder / "journal.json")
        spent = journal.spent(policy.epsilon_view)
        say(f"epsilon {spent:.4g} of {policy.epsilon:g} ({policy.epsilon_view})")
        for record in journal.jobs.values():
            say(
                f"  {record.name}: {len(record.joined)} rounds, epsilon "
                f"{record.spent(policy.epsilon_view):.4g}"
            )


@app.command()
def pause(folder: Folder) -> None:
    """Take part in no more rounds until resumed."""
    from client.identity import Credentials

    Credentials.load(folder)
    (folder / "paused").touch()
    say("paused")


@app.command()
def resume(folder: Folder) -> None:
    """Take part again."""
    from client.identity import Credentials

    Credentials.load(folder)
    (folder / "paused").unlink(missing_ok=True)
    say("resumed")


@app.command()
def leave(
    folder: Folder,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Delete the keys here without telling the coordinator."),
    ] = False,
) -> None:
    """Leave the federation, once the agent is stopped: revoke this device and delete its keys."""
    from client.enrollment import leave as leave_
    from client.identity import Credentials
    from client.lock import exclusive
    from client.volatile import VolatileStore
    from fedsys.errors import ConfigError

    credentials = Credentials.load(folder)
    with exclusive(folder, "fedsys agent leave"):
        if not offline:
            try:
                leave_(credentials)
            except ConfigError as error:
                raise ConfigError(
                    f"{error}; or delete only the keys here with `fedsys agent leave --offline "
                    f"{folder}`, and have the operator revoke {credentials.name}"
                ) from None
        VolatileStore.of(folder).forget()
        for name in ("identity.ed25519", "tls.pem", "round.state", "agent.toml", "status.json"):
            (folder / name).unlink(missing_ok=True)
    say(f"{credentials.name} has left; policy and journal are kept in {folder}")


@app.command()
def doctor(folder: Folder) -> None:
    """Check keys, certificate, policy, conditions and the connection to the coordinator."""
    import datetime as dt

    from client.conditions import conditions, obstacle
    from client.identity import Credentials
    from client.journal import Journal
    from client.policy import Policy
    from client.reachability import admitted
    from client.volatile import volatile_folder
    from fedsys.errors import FedsysError

    failed = False

    def line(good: bool | None, what: str) -> None:
        nonlocal failed
        failed |= good is False
        say(f"{ {True: 'ok', False: 'FAIL', None: 'unknown'}[good]:8s}{what}")

    credentials = Credentials.load(folder)
    line(True, f"{credentials.name}, node {credentials.node}")
    place = volatile_folder()
    line(
        True if place is not None else None,
        f"sealing keys on tmpfs, in {place}"
        if place is not None
        else "sealing keys in memory only, because there is no tmpfs: a restarted agent sits out "
        "the round it was in",
    )
    try:
        left = credentials.certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
        line(left.days >= 0, f"certificate valid for {left.days} days")
    except FedsysError as error:
        line(False, str(error))
    try:
        chain = credentials.roster_chain()
        line(True, f"roster version {chain.version}, signatures valid")
    except FedsysError as error:
        line(False, str(error))
    try:
        line(*admitted(credentials))
    except FedsysError as error:
        line(False, str(error))
    try:
        Journal(folder / "journal.json")
    except FedsysError as error:
        line(False, str(error))
    if (folder / "paused").exists():
        line(False, f"paused by its owner; resume with `fedsys agent resume {folder}`")
    path = folder / "policy.toml"
    if not path.exists():
        line(None, "no policy.toml yet; the first run writes one")
    else:
        try:
            policy = Policy.load(path)
            found = conditions(policy)
            for condition in found:
                line(condition.holds, f"{condition.name}: {condition.text}")
            why = obstacle(policy, found)
            line(why is None, why or "the policy lets this device work now")
        except FedsysError as error:
            line(False, str(error))
    if failed:
        raise typer.Exit(1)
