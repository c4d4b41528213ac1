"""Copy blocks of an image into a new one.

if=IMAGE is read and of=IMAGE written; bs=SIZE is a block (default 512), count=BLOCKS how many
are copied (default: all), skip=BLOCKS how many are passed over first.

Examples:
  vdisk dd -O qcow2 bs=1M count=100 skip=1 if=disk.raw of=part.qcow2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.cli.options import add_format, add_source, complain, open_source, secrets, warn
from vdisk.errors import InvalidRequestError
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser

_OPERANDS = ("bs", "count", "if", "of", "skip")


def configure(parser: Parser) -> None:
    add_source(parser)
    add_format(parser, "-O", "target_format", "format of the new image (default raw)", "raw")
    parser.add_argument("operands", nargs="*", metavar="NAME=VALUE", help="if, of, bs, count, skip")


def run(args: Namespace) -> int:
    from vdisk.jobs.dd import dd

    operands = _operands(args.operands)
    if "if" not in operands or "of" not in operands:
        raise InvalidRequestError("dd needs both images: if=IMAGE of=IMAGE")
    count = operands.get("count")
    with open_source(args, operands["if"]) as source:
        result = dd(
            source,
            operands["of"],
            block_size=parse_size(operands.get("bs", "512"), what="bs"),
            count=None if count is None else parse_size(count, what="count"),
            skip=parse_size(operands.get("skip", "0"), what="skip"),
            target_format=args.target_format,
            secrets=secrets(args),
            warn=warn,
        )
    if result.past_end:
        complain(f"{operands['if']}: cannot skip to the given offset: the copy is empty")
    return 0


def _operands(words: list[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in _OPERANDS:
            raise InvalidRequestError(f"unknown operand {word!r} (known: {', '.join(_OPERANDS)})")
        found[name] = value
    return found
