"""``vdisk``, the command: finds the subcommand, runs it, reports how it ended.

A subcommand is a module of this package, listed in :data:`COMMANDS` and imported when it is
used.  It has ``configure(parser)``, which adds its options, and ``run(args)``, which returns
the exit status; where that is not 1 for every error it also has ``ERROR_STATUS``.

Errors are one line on stderr, an interrupt (Ctrl-C) is silent and exits with 130.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from vdisk.cli.options import Parser, complain
from vdisk.errors import InvalidRequestError, VdiskError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

COMMANDS = {
    "amend": "change the options of an existing image",
    "bench": "measure how fast an image is read or written",
    "bitmap": "add, remove, clear, enable, disable or merge dirty bitmaps",
    "check": "find and repair errors in an image's tables",
    "commit": "write an overlay's changes into its backing file",
    "compare": "tell whether two images hold the same content",
    "convert": "copy an image into another format",
    "create": "make a new image",
    "dd": "copy blocks from one image to another",
    "info": "show what an image is",
    "io": "read and write an image by commands, as qemu-io does",
    "map": "show where an image's data lies",
    "measure": "tell how large a new image would be",
    "rebase": "give an overlay another backing file",
    "resize": "grow or shrink an image",
    "snapshot": "list, create, apply or delete internal snapshots",
}

INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a program that Ctrl-C ended, as a shell reports it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, so that half-made targets are cleaned up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``vdisk`` with ``arguments`` (None: of this process); returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    status = 1
    try:
        signal.signal(signal.SIGTERM, _terminate)
        status = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        status = 128 + signal.SIGTERM if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except OSError as error:
        complain(str(error))
        status = 1
    return status


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 1
    if arguments[0] in ("-V", "--version"):
        from vdisk import __version__

        print(f"vdisk {__version__}")
        return 0
    name, *rest = arguments
    error_status = 1
    try:
        command = _find(name)
        error_status = getattr(command, "ERROR_STATUS", 1)
        parser = Parser(prog=f"vdisk {name}", description=command.__doc__)
        command.configure(parser)
        status: int = command.run(parser.parse(rest))
        return status
    except VdiskError as error:
        sys.stdout.flush()
        complain(str(error))
        return error_status


def _find(name: str) -> Any:
    if name in COMMANDS:
        return importlib.import_module(f"vdisk.cli.{name}")
    from difflib import get_close_matches

    close = get_close_matches(name, COMMANDS)
    hint = f"did you mean {close[0]!r}?" if close else "'vdisk --help' lists them"
    raise InvalidRequestError(f"there is no command {name!r}: {hint}")


def _overview() -> str:
    lines = [f"  {name:10}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vdisk COMMAND [OPTION]… IMAGE…",
            "",
            *lines,
            "",
            "'vdisk COMMAND --help' shows the options of one command.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
