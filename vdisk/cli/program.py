"""A program of subcommands: finds the one asked for, runs it, reports how it ended.

A subcommand is a module of the program's package, imported when it is used.  It has
``configure(parser)``, which adds its options, and ``run(args)``, which returns the exit
status; where that is not 1 for every error it also has ``ERROR_STATUS``.

``COMMAND --version`` is the program's; ``COMMAND --long-options`` and ``--short-options`` list what
a shell may complete, as libnbd's tools and nbdkit do.

Errors are one line on stderr, an interrupt (Ctrl-C) is silent and exits with 130.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.cli.options import Parser, complain, speak_as
from vdisk.errors import InvalidRequestError, VdiskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a program that Ctrl-C ended, as a shell reports it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, so that half-made targets are cleaned up."""


class Program(NamedTuple):
    """``package``: where the modules of the ``commands`` are; each with what it is for."""

    name: str
    package: str
    commands: Mapping[str, str]
    operands: str

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run with ``arguments`` (None: of this process); returns the exit status."""
        arguments = sys.argv[1:] if arguments is None else arguments
        speak_as(self.name)
        _accept_any_bytes()
        status = 1
        try:
            signal.signal(signal.SIGTERM, _terminate)
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="surrogateescape")  # file names are bytes
            status = self._run(arguments)
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

    def _run(self, arguments: Sequence[str]) -> int:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(self._overview())
            return 0 if arguments else 1
        from vdisk import __version__

        version = f"{self.name} {__version__}"
        name, *rest = arguments
        if name in ("-V", "--version"):
            print(version)
            return 0
        error_status = 1
        try:
            command = self._find(name)
            error_status = getattr(command, "ERROR_STATUS", 1)
            parser = Parser(prog=f"{self.name} {name}", description=command.__doc__)
            parser.add_argument(
                "-V", "--version", action="version", version=version, help="show the version"
            )
            command.configure(parser)
            if rest in (["--long-options"], ["--short-options"]):
                print("\n".join(parser.options(long=rest == ["--long-options"])))
                return 0
            status: int = command.run(parser.parse(rest))
            return status
        except VdiskError as error:
            sys.stdout.flush()
            complain(str(error))
            return error_status

    def _find(self, name: str) -> Any:
        if name in self.commands:
            return importlib.import_module(f"{self.package}.{name}")
        from difflib import get_close_matches

        close = get_close_matches(name, self.commands)
        hint = f"did you mean {close[0]!r}?" if close else f"'{self.name} --help' lists them"
        raise InvalidRequestError(f"there is no command {name!r}: {hint}")

    def _overview(self) -> str:
        lines = [f"  {name:12}{summary}" for name, summary in self.commands.items()]
        return "\n".join(
            [
                f"usage: {self.name} COMMAND [OPTION]… {self.operands}",
                "",
                *lines,
                "",
                f"'{self.name} COMMAND --help' shows the options of one command, "
                f"'{self.name} --version' the version.",
            ]
        )


def _accept_any_bytes() -> None:
    """What is read or shown may hold names that are not valid text: their bytes pass through."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated
