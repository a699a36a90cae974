"""Where a page listens: this machine alone, or a Unix socket that only its owner can open."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from fedsys.errors import ConfigError
from fedsys.wire.address import host_and_port

__all__ = ["WebAddress"]

_UNIX = "unix:"
_LONGEST_PATH = 100
_HERE = "localhost:PORT, 127.0.0.1:PORT, [::1]:PORT or unix:/PATH"


@dataclass(frozen=True, kw_only=True, slots=True)
class WebAddress:
    """An address of the loopback interface, or a socket's path.

    Attributes:
        host: an IP address of this machine; empty for a Unix socket.
        port: 0 lets the system choose.
        path: of a Unix socket; None for TCP.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> WebAddress:
        """Reads ``HOST:PORT`` or ``unix:/PATH``.

        Raises:
            ConfigError: it is neither, or other machines could reach it.

        >>> WebAddress.parse("localhost:7480").host
        '127.0.0.1'
        """
        if text.startswith(_UNIX):
            return cls._of_socket(text)
        try:
            host, port = host_and_port(text, "", least=0)
        except ConfigError:
            raise ConfigError(f"not an address for a page; give {_HERE}") from None
        if host == "localhost":  # by number, so that no name server has a say
            host = "127.0.0.1"
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if not local:
            raise ConfigError(
                f"others could reach it, and the page is for this machine alone: give {_HERE}, and "
                f"come from elsewhere through `ssh -L`"
            )
        return cls(host=host, port=port)

    @classmethod
    def _of_socket(cls, text: str) -> WebAddress:
        path = Path(text.removeprefix(_UNIX))
        if not path.is_absolute():
            raise ConfigError("a socket's path is absolute, e.g. unix:/run/fedsys/web.sock")
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise ConfigError(f"a socket's path has at most {_LONGEST_PATH} bytes; shorten it")
        return cls(path=path)

    def listen(self) -> socket.socket:
        """A listening socket; a Unix socket has mode 0600 from its first moment.

        Raises:
            OSError: it cannot be listened on.
        """
        if self.path is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            return socket.create_server((self.host, self.port), family=family)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _clear(self.path)
            before = os.umask(0o177)
            try:
                listener.bind(str(self.path))
            finally:
                os.umask(before)
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener

    def url(self, port: int, token: str) -> str:
        """The page's address; browsers never send the part after ``#``.

        Args:
            port: that is listened on; for a Unix socket, the one that `ssh -L` gives it.
            token: the page's.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host or "127.0.0.1"
        return f"http://{host}:{port}/#token={token}"


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
