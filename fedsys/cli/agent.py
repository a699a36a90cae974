"""``fedsys agent``: the data owner's side of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.deployment import no_core_dumps, prepare
from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from client.identity import Credentials
    from client.stop import Stop

__all__ = ["app"]

app = typer.Typer(help="Take part with the data of this device.", no_args_is_help=True)
app.callback()(prepare)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The device's folder.")]


@app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The coordinator.")],
    folder: Folder,
    token: Annotated[
        str, typer.Option(help="What `fedsys coordinator enroll` printed; - reads it from stdin.")
    ],
) -> None:
    """Make this device's keys, get a certificate, pin the roster."""
    import sys

    from client.grpc_channel import join as join_
    from fedsys.wire.token import JoinToken

    text = sys.stdin.readline() if token == "-" else token
    credentials = join_(address, JoinToken.decode(text), folder)
    say(f"joined as {credentials.name}, node {credentials.node}")
    say(f"next: fedsys agent run {folder} --data TASK")


@app.command()
def run(
    folder: Folder,
    data: Annotated[
        str, typer.Option(metavar="SOURCE", help="TASK, or TASK=FOLDER with its files.")
    ],
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Part I (from 0) of N, for trying out.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the task; repeatable."),
    ] = None,
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
    """Stay connected and take part in what policy.toml allows, until stopped."""
    from client.stop import Stop

    stop = Stop()
    stop.on_signals()  # before anything that takes long, or is to be left as it should be

    from client.identity import Credentials
    from client.lock import exclusive
    from fedsys.logs import configure

    configure(log)
    no_core_dumps()
    credentials = Credentials.load(folder)
    options = _options(option or [])
    with exclusive(folder, "fedsys agent run"):
        _serve(credentials, data=data, shard=shard, options=options, corrupt=corrupt, stop=stop)
    say("stopped", err=True)


def _serve(
    credentials: Credentials,
    *,
    data: str,
    shard: str | None,
    options: dict[str, object],
    corrupt: float | None,
    stop: Stop,
) -> None:
    import os

    import torch
    from threadpoolctl import threadpool_limits

    from client.answer_time import AnswerTime
    from client.grpc_host import ConnectionHost
    from client.local_data import DataSpec, LocalData
    from client.policy import ApprovedTask, Policy
    from client.session import Session
    from fedsys.errors import ConfigError
    from fedsys.secret_files import write_secret

    path = credentials.folder / "policy.toml"
    policy = Policy.load(path) if path.exists() else None
    if corrupt is not None and not 0 <= corrupt < 1:
        raise ConfigError(f"--corrupt {corrupt:g}: give a fraction from 0 to below 1")
    if corrupt is not None and policy is not None and policy.corrupt != corrupt:
        raise ConfigError(
            f"--corrupt {corrupt:g}: {path} says corrupt = {policy.corrupt:g} already; change it "
            f"there"
        )
    threads = policy.threads if policy is not None else 1
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")  # of numpy, until the process ends
    gpu = policy is not None and policy.gpu and torch.cuda.is_available()
    worker = LocalData(
        DataSpec.parse(data, shard), options=options, device="cuda" if gpu else "cpu"
    )
    if policy is None:
        approved = ApprovedTask(sha256=worker.sha256, options=options)
        policy = Policy.fresh(
            worker.spec.task, approved, corrupt=0.1 if corrupt is None else corrupt
        )
        write_secret(path, policy.dump().encode())
        say(f"wrote {path}: it allows task {worker.spec.task} alone", err=True)
    if policy.nice:
        os.nice(policy.nice)
    session = Session(
        credentials=credentials,
        worker=worker,
        policy=lambda: Policy.load(path),
        answer_time=AnswerTime(sleep=stop.wait),
    )
    ConnectionHost(session, stop=stop).run()


@app.command()
def status(folder: Folder) -> None:
    """What the agent is doing, and what it has spent by its own count."""
    import json

    from client.identity import Credentials
    from client.lock import holder
    from fedsys.wire.roster import fingerprint

    credentials = Credentials.load(folder)
    say(f"{credentials.name}, node {credentials.node}, at {credentials.coordinator}")
    say(f"identity {fingerprint(credentials.identity.public_bytes)}")
    state = "not running"
    who = holder(folder)
    if who is not None and not who.startswith("fedsys agent run"):
        state = f"{who} is at work in it"
    elif who is not None:
        try:
            shown = json.loads((folder / "status.json").read_text("utf-8"))
            state = f"{shown['connection']}, {shown['activity']}"
        except (OSError, ValueError, KeyError):
            state = "starting"
    say(state + (", paused" if (folder / "paused").exists() else ""))
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
    """Take part in no further round until resumed."""
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
        bool, typer.Option("--offline", help="Delete the keys here without telling anybody.")
    ] = False,
) -> None:
    """Leave the federation, once the agent is stopped: be revoked, and delete the keys."""
    from client.grpc_channel import leave as leave_
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
                    f"{error}; or delete the keys here alone with `fedsys agent leave --offline "
                    f"{folder}`, and have the operator revoke {credentials.name}"
                ) from None
        VolatileStore.of(folder).forget()
        for name in ("identity.ed25519", "tls.pem", "round.state", "agent.toml", "status.json"):
            (folder / name).unlink(missing_ok=True)
    say(f"{credentials.name} has left; policy and journal are kept in {folder}")


@app.command()
def doctor(folder: Folder) -> None:
    """Check keys, certificate, policy, conditions and the way to the coordinator."""
    import datetime as dt
    import socket

    from client.conditions import conditions, obstacle
    from client.identity import Credentials
    from client.journal import Journal
    from client.policy import Policy
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
        else "sealing keys in memory alone, for want of a tmpfs: a restarted agent sits out the "
        "round it was in",
    )
    try:
        left = credentials.certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
        line(left.days >= 0, f"certificate good for {left.days} days")
    except FedsysError as error:
        line(False, str(error))
    try:
        chain = credentials.roster_chain()
        line(True, f"roster version {chain.version}, signatures hold")
    except FedsysError as error:
        line(False, str(error))
    host, _, port = credentials.coordinator.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            line(True, f"{credentials.coordinator} answers")
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        line(
            False,
            f"{credentials.coordinator}: not reached: {reason}; is the coordinator running, and "
            f"does this network let the device out to it?",
        )
    try:
        Journal(folder / "journal.json")
    except FedsysError as error:
        line(False, str(error))
    if (folder / "paused").exists():
        line(False, f"paused by its owner; go on with `fedsys agent resume {folder}`")
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


def _options(given: list[str]) -> dict[str, object]:
    import tomllib

    from fedsys.errors import ConfigError

    found: dict[str, object] = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {each}: expected KEY=VALUE")
        try:
            found[key] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found
