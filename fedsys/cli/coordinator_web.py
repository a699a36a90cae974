"""``fedsys coordinator web``: the address of the operator's page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.terminal import say

__all__ = ["web"]


def web(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")],
) -> None:
    """Print the address of the operator's page; what follows the # is its token: keep it secret."""
    from fedsys.errors import ConfigError
    from fedsys.web.address import WebAddress
    from fedsys.web.token import kept_token
    from server.home.folder import Home

    home = Home.open(folder)
    text = home.settings().web
    if not text:
        raise ConfigError(
            f'{home.settings_file}: web is not set: set web = "localhost:7480" there, and '
            f"restart the coordinator"
        )
    address, token = WebAddress.parse(text), kept_token(home.web_token)
    if address.path is not None:
        say(address.url(7480, token))
        say(f"after, for example: ssh -L 7480:{address.path} HOST", err=True)
        return
    if not address.port:
        raise ConfigError(
            f"{home.settings_file}: web = '{text}' lets the system choose the port: give one, "
            f"e.g. 'localhost:7480'"
        )
    say(address.url(address.port, token))
