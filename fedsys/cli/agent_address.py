"""``fedsys agent set-address``: the device's side of a coordinator that moved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.terminal import say

__all__ = ["set_address"]


def set_address(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The device's folder.")],
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where it is now.")],
) -> None:
    """Connect to the same coordinator at another address, once the agent is stopped.

    The device keeps trusting the authority that it pinned when it joined, and nobody else.
    """
    import dataclasses

    from client.identity import Credentials
    from client.lock import exclusive
    from fedsys.errors import ConfigError
    from fedsys.wire.address import host_and_port

    host_and_port(address, "HOST:PORT")
    credentials = Credentials.load(folder)
    with exclusive(folder, "fedsys agent set-address"):
        moved = dataclasses.replace(credentials, coordinator=address)
        try:
            moved.store_table()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{folder / 'agent.toml'}: {reason}") from None
    say(
        f"{moved.name} connects to {address} from its next start (before: "
        f"{credentials.coordinator})"
    )
    say(f"check the way there with: fedsys agent doctor {folder}")
