"""Show what parts of an NBD export hold, as one of its metadata contexts tells.

Examples:
  vdisk-nbd map nbd://example.com/disk
  vdisk-nbd map --totals nbd://example.com/disk
  vdisk-nbd map --context qemu:dirty-bitmap:backup --json nbd://example.com/disk
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from vdisk.cli.colour import Colour, Painter
from vdisk.nbd.wire import BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH, QEMU_DIRTY_BITMAP

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from vdisk.cli.options import Parser

_ALLOCATION = {0: "data", 1: "hole", 2: "zero", 3: "hole,zero"}
_DEPTH = {0: "absent", 1: "local"}
_DIRTY = {0: "clean", 1: "dirty"}
_COLOURS = {
    "data": Colour.STRONG,
    "local": Colour.STRONG,
    "clean": Colour.GOOD,
    "dirty": Colour.BAD,
    "absent": Colour.FAINT,
    "hole": Colour.FAINT,
    "hole,zero": Colour.FAINT,
}


def configure(parser: Parser) -> None:
    from vdisk.cli._nbd._exports import add_server
    from vdisk.cli.colour import add_colour

    parser.add_argument(
        "--context",
        default=BASE_ALLOCATION,
        metavar="CONTEXT",
        help=f"the metadata context (default {BASE_ALLOCATION})",
    )
    parser.add_argument("--totals", action="store_true", help="only how much of each there is")
    parser.add_argument("--json", action="store_true", help="as JSON, like nbdinfo --map --json")
    add_colour(parser)
    add_server(parser)


def run(args: Namespace) -> int:
    from vdisk.cli._nbd._exports import named_server, place_of
    from vdisk.stores.nbd import NbdSettings, NbdStore

    settings = NbdSettings(meta_contexts=(args.context,))
    with contextlib.ExitStack() as stack:
        uri, tls = place_of(args, stack.enter_context(named_server(args)))
        store = stack.enter_context(NbdStore(uri, settings=settings, tls=tls))
        extents = store.context_extents(args.context)
        rows = (_totals if args.totals else _extents)(extents, args.context, store.size)
        if args.json:
            print("[\n" + ",\n".join(row.json for row in rows) + "\n]")
        else:
            painter = Painter(args)
            for row in rows:
                print(painter.paint(row.text, _COLOURS.get(row.description, Colour.PLAIN)))
    return 0


class _Row(NamedTuple):
    """A line for people, and for programs; and what its status means."""

    text: str
    json: str
    description: str


def _extents(extents: Iterator[tuple[int, int, int]], context: str, _size: int) -> Iterator[_Row]:
    for start, length, status in extents:
        text = description(context, status)
        suffix = f', "description": "{text}"' if text else ""
        yield _Row(
            f"{start:10}  {length:10}  {status:3}  {text}".rstrip(),
            f'{{ "offset": {start}, "length": {length}, "type": {status}{suffix}}}',
            text,
        )


def _totals(extents: Iterator[tuple[int, int, int]], context: str, size: int) -> Iterator[_Row]:
    sums: dict[int, int] = {}
    for _, length, status in extents:
        sums[status] = sums.get(status, 0) + length
    for status, total in sorted(sums.items()):
        text, percent = description(context, status), 100 * total / size
        suffix = f', "description": "{text}"' if text else ""
        yield _Row(
            f"{total:10} {percent:5.1f}% {status:3} {text}".rstrip(),
            f'{{ "size": {total}, "percent": {percent:g}, "type": {status}{suffix} }}',
            text,
        )


def description(context: str, status: int) -> str:
    """What a status of the context means; empty where nobody knows."""
    if context == BASE_ALLOCATION:
        return _ALLOCATION.get(status, "")
    if context == QEMU_ALLOCATION_DEPTH:
        return _DEPTH.get(status, f"backing depth {status}")
    if context.startswith(QEMU_DIRTY_BITMAP):
        return _DIRTY.get(status, "")
    return ""
