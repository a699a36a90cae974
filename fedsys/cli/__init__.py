"""Every command. Modules here import what they need on use, so that help is instant."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Entry point of ``fedsys``: runs a command; known errors become one line and exit status 2."""
    from fedsys.cli.shadowing import check_own_packages
    from fedsys.errors import FedsysError

    signal.signal(signal.SIGTERM, _terminate)
    try:
        check_own_packages()
        from fedsys.cli.app import app

        app(prog_name="fedsys", standalone_mode=True)
    except FedsysError as error:
        from fedsys.printable import printable

        print(f"error: {printable(error, 20_000)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        from fedsys.cli.extras import missing

        needed = missing(error)
        if needed is None:
            raise
        print(f"error: {needed}", file=sys.stderr)
        sys.exit(needed.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
