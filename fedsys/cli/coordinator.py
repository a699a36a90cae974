"""``fedsys coordinator``: the operator's side of a deployment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.coordinator_state import backup, move, recover, restore
from fedsys.cli.coordinator_web import web
from fedsys.cli.deployment import no_core_dumps, prepare_coordinator, unwritable
from fedsys.cli.extras import require
from fedsys.cli.job_lines import node_json
from fedsys.cli.sign_roster import sign_roster
from fedsys.cli.terminal import say

__all__ = ["app"]

app = typer.Typer(help="Run a coordinator, and let devices join it.", no_args_is_help=True)
app.callback()(prepare_coordinator)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]


@app.command()
def init(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or address under which devices reach this coordinator; repeatable.",
            show_default="localhost, 127.0.0.1, ::1 and this host's name",
        ),
    ] = None,
    roster_key: Annotated[
        str | None,
        typer.Option(
            help="Public key (64 hex digits, or a file) of a roster authority that is not you."
        ),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Privacy budget of the population over all jobs.")
    ] = None,
    colluders: Annotated[
        int, typer.Option(help="Devices, of all, that may collude with this coordinator.")
    ] = 0,
) -> None:
    """Create a certificate authority, a server certificate, keys and a database."""
    from fedsys.errors import ConfigError
    from fedsys.privacy import load_public_key
    from server.home.folder import Home
    from server.home.pki import default_hosts

    if epsilon is not None and not epsilon > 0:
        raise ConfigError(f"--epsilon {epsilon:g}: a budget is above 0; leave it out for none")
    public = None if roster_key is None else load_public_key(roster_key).public_bytes_raw()
    if not 0 <= colluders <= 1_000_000:
        raise ConfigError(f"--colluders {colluders}: give a number from 0 to 1000000")
    home = Home.create(
        folder,
        hosts=host or default_hosts(),
        roster_key=public,
        epsilon=epsilon,
        colluders=colluders,
    )
    say(f"coordinator in {folder}")
    say(f"authority's fingerprint  {home.authority.fingerprint}")
    say(f"ledgers are signed by    {home.signer.public_hex}")
    say(f"roster is signed by      {home.roster_key.hex()}")
    if home.operator_signs_roster:
        say(
            "You hold the roster's key: against you as an active attacker, devices have only the "
            "record of roster changes. Give --roster-key to let somebody else decide."
        )


@app.command()
def enroll(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="What to call the device.")],
    hours: Annotated[float, typer.Option(help="How long the token is valid.")] = 24.0,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label by which jobs may choose the device; repeatable."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the token.")] = False,
) -> None:
    """Print a one-time token with which one device can join."""
    from fedsys.errors import ConfigError
    from server.home.folder import Home
    from server.home.state import State

    if not 0.01 <= hours <= 8760:
        raise ConfigError(f"--hours {hours:g}: give a number from 0.01 to 8760, a year")
    home = Home.open(folder)
    state = State.open(folder)
    try:
        token = home.registry(state).issue_token(name, hours=hours, labels=label or ())
    finally:
        state.close()
    if quiet:
        say(token.encode())
        return
    say(f"Token for {name}, valid once within {hours:g} hours; keep it secret:")
    say()
    say(token.encode())
    say()
    say(f"authority's fingerprint  {token.fingerprint}")
    say("On the device: fedsys agent join HOST:PORT --token TOKEN DIR")


@app.command()
def run(
    folder: Folder,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where devices connect; port 0 picks one.")
    ] = "0.0.0.0:7443",
    log: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Serve devices and run jobs until stopped; an interrupted job is resumed."""
    import asyncio
    import logging
    import sys

    from client.task_model import TaskModel
    from fedsys.logs import configure
    from server.grpc_service import run_coordinator
    from server.home.folder import Home

    configure(log)
    no_core_dumps()
    home = Home.open(folder)
    if home.settings().witnesses:
        require("httpx", extra="witness")
    if home.settings().web:
        require("starlette", "uvicorn", extra="web")

    def ready(port: int) -> None:
        text = f"listening on {listen.rpartition(':')[0]}:{port}"
        if log == "json":  # every line of its output is JSON
            logging.getLogger(__name__).info("%s", text)
            return
        say(text)
        sys.stdout.flush()

    asyncio.run(run_coordinator(home, listen=listen, models=TaskModel, ready=ready))


@app.command()
def nodes(
    folder: Folder,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one device a line, instead of text.")
    ] = False,
) -> None:
    """List the devices that joined."""
    import datetime as dt

    from fedsys.cli.grpc_operator import operator

    with operator(folder) as calls:
        fleet = calls.fleet()
    if as_json:
        for node in fleet.nodes:
            say(node_json(node))
        return
    for node in fleet.nodes:
        connected = "connected" if node.connected else "away"
        expires = dt.datetime.fromtimestamp(node.expires, dt.UTC).date()
        labels = "".join(f" {label}" for label in node.labels)
        say(
            f"{node.id:5d}  {node.name:24s} {node.status:8s} {connected:9s} until {expires}{labels}"
        )
        if node.warning:
            say(f"       {node.warning}")
    budget = f" of {fleet.budget:g}" if fleet.HasField("budget") else ", no budget set"
    say(f"roster version {fleet.roster_version}; epsilon spent {fleet.spent:.4g}{budget}")
    for why in fleet.held:
        say(f"no job runs: {why}; see fedsys coordinator recover {folder}")


@app.command()
def revoke(folder: Folder, name: Annotated[str, typer.Argument()]) -> None:
    """Exclude a device permanently."""
    from server.home.folder import Home
    from server.home.state import State

    home, state = Home.open(folder), State.open(folder)
    try:
        home.registry(state).revoke(name)
    finally:
        state.close()
    say(f"{name} is revoked")
    if not home.operator_signs_roster:
        say("The roster's authority must sign the next list: fedsys coordinator roster")


@app.command()
def rotate(folder: Folder) -> None:
    """Issue a new server certificate, for the hosts in coordinator.toml; then restart."""
    from server.home.folder import Home

    Home.open(folder).rotate_server()
    say("a new server certificate is in place; restart the coordinator")


@app.command()
def roster(
    folder: Folder,
    propose: Annotated[
        Path | None, typer.Option(help="Write the next list, for the authority to sign.")
    ] = None,
    accept: Annotated[
        Path | None, typer.Option(help="Put a list that the authority signed into force.")
    ] = None,
) -> None:
    """Show the signed roster, propose the next one, or put a signed one into force."""
    from fedsys.errors import ConfigError
    from fedsys.wire.roster_authority import read_signed
    from server.home.folder import Home
    from server.home.state import State

    home, state = Home.open(folder), State.open(folder)
    try:
        registry = home.registry(state)
        if propose is not None:
            statement = registry.propose()
            try:
                propose.write_bytes(statement.encoded)
            except OSError as error:
                raise unwritable("--propose", propose, error) from None
            say(
                f"version {statement.version} with {len(statement.members)} members is in "
                f"{propose}; the authority runs: fedsys coordinator sign-roster KEY {propose}"
            )
        elif accept is not None:
            try:
                signed = read_signed(accept)
            except (OSError, ValueError):
                raise ConfigError(
                    f"--accept {accept}: not a signed roster; give the file that `fedsys "
                    f"coordinator sign-roster` wrote"
                ) from None
            say(f"roster version {registry.accept(signed).version} is in force")
        else:
            members = 0
            for step in registry.chain().steps:
                members += len(step.added) - len(step.removed)
                say(
                    f"version {step.version}  {step.hash.hex()[:16]}  {members} nodes"
                    f"{_listed('added', step.added)}{_listed('removed', step.removed)}"
                )
    finally:
        state.close()


def _listed(what: str, nodes: Iterable[int]) -> str:
    text = ", ".join(map(str, nodes))
    return f"; {what} {text}" if text else ""


app.command("sign-roster")(sign_roster)
app.command()(backup)
app.command()(restore)
app.command()(move)
app.command()(recover)
app.command()(web)


@app.command()
def templates(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder; created if missing.")],
) -> None:
    """Write systemd units for coordinator and agent, a Containerfile and a compose file."""
    from importlib import resources

    from fedsys.errors import ConfigError

    try:
        out.mkdir(parents=True, exist_ok=True)
        for entry in sorted(
            (resources.files("fedsys") / "templates" / "deploy").iterdir(),
            key=lambda each: each.name,
        ):
            target = out / entry.name
            if target.exists():
                raise ConfigError(f"{target}: exists already; give another folder")
            target.write_text(entry.read_text(encoding="utf-8"), encoding="utf-8")
            say(str(target))
    except OSError as error:
        raise unwritable("OUT", out, error) from None
