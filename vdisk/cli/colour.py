"""Colours of what commands print: ANSI's SGR sequences, where someone looks at a terminal."""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser


class Colour(enum.Enum):
    """How a word looks; the value is the parameter of SGR (ECMA-48, 8.3.117)."""

    PLAIN = ""
    STRONG = "1"
    FAINT = "90"
    GOOD = "32"
    BAD = "31"


def add_colour(parser: Parser) -> None:
    """``--color`` and ``--no-color``; by default a terminal has colours, and a file none."""
    parser.add_argument(
        "--color",
        "--colors",
        "--colour",
        "--colours",
        dest="colour",
        action="store_true",
        default=None,
        help="print in colours (default: on a terminal)",
    )
    parser.add_argument(
        "--no-color",
        "--no-colors",
        "--no-colour",
        "--no-colours",
        dest="colour",
        action="store_false",
        help="print without colours",
    )


class Painter:
    """Paints words, or leaves them as they are, as the options of :func:`add_colour` say."""

    def __init__(self, args: Namespace) -> None:
        self.enabled: bool = sys.stdout.isatty() if args.colour is None else args.colour

    def paint(self, text: str, colour: Colour) -> str:
        """``text`` in that colour."""
        if not self.enabled or colour is Colour.PLAIN:
            return text
        return f"\033[{colour.value}m{text}\033[0m"
