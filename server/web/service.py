"""Serves the operator's page inside the coordinator's process."""

from __future__ import annotations

from collections.abc import Callable

from fedsys.errors import ConfigError
from fedsys.web.address import WebAddress
from fedsys.web.application import application
from fedsys.web.board import Board
from fedsys.web.serving import PageServer
from fedsys.web.token import kept_token
from server.deployed.fleet import Fleet
from server.home.folder import Home
from server.home.state import State
from server.web.sections import OperatorSections

__all__ = ["operator_page"]


def operator_page(
    home: Home, state: State, fleet: Fleet, *, healthy: Callable[[], str]
) -> PageServer:
    """The page at the address in ``coordinator.toml``, listening but not started.

    Args:
        home: the coordinator's folder, which holds the token.
        state: its database.
        fleet: the open sessions.
        healthy: what is wrong, in a few words; empty if nothing is.

    Raises:
        ConfigError: the address cannot be listened on, or the token cannot be read.
    """
    text = home.settings().web
    token = kept_token(home.web_token)
    try:
        listener = WebAddress.parse(text).listen()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"web = '{text}' in coordinator.toml: cannot listen there: {reason}; give another "
            f"address, e.g. 'localhost:7480', or '' for none"
        ) from None
    board = Board(OperatorSections(home, state, fleet).read)
    app = application(board, shell="operator.html", token=lambda: token, healthy=healthy)
    return PageServer(app, board, listener)
