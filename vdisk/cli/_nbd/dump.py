"""Print what an NBD export holds, in hexadecimal and as text, as nbddump does.

A "*" stands for lines that are all like the one before it; the last line is always shown.

Examples:
  vdisk-nbd dump nbd://example.com/disk
  vdisk-nbd dump -n 512 nbd://example.com/disk
  vdisk-nbd dump -- [ qemu-nbd -r -f qcow2 disk.qcow2 ] | less
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vdisk.cli.colour import Colour, Painter
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from vdisk.block import BlockDevice
    from vdisk.cli.options import Parser

WIDTH = 16
"""Bytes on a line."""

_CHUNK = 1 << 20
_ZEROES = bytes(WIDTH)
_PRINTABLE = range(0x20, 0x7F)
_AS_TEXT = bytes(byte if byte in _PRINTABLE else ord(".") for byte in range(256))


def configure(parser: Parser) -> None:
    from vdisk.cli._nbd._exports import add_server
    from vdisk.cli.colour import add_colour

    parser.add_argument(
        "-n", "--length", "--limit", metavar="N", help="no more than the first N bytes"
    )
    add_colour(parser)
    add_server(parser)


def run(args: Namespace) -> int:
    from vdisk.cli._nbd._exports import named_server, place_of
    from vdisk.stores.nbd import NbdStore

    with contextlib.ExitStack() as stack:
        uri, tls = place_of(args, stack.enter_context(named_server(args)))
        store = stack.enter_context(NbdStore(uri, tls=tls))
        end = store.size
        if args.length is not None:
            end = min(end, parse_size(args.length, what="--length"))
        dump(store, end, Painter(args), print)
    return 0


def dump(device: BlockDevice, end: int, painter: Painter, show: Callable[[str], object]) -> None:
    """``show`` the lines of the first ``end`` bytes; what the map calls zero is not read."""
    lines = _Lines(device.size, painter, show)
    for extent in device.map(0, end):
        if extent.reads_zero:
            lines.take_zeroes(extent.length)
            continue
        for start in range(extent.start, extent.end, _CHUNK):
            lines.take(device.read(start, min(_CHUNK, extent.end - start)))
    lines.finish()


class _Lines:
    """Cuts bytes into lines, and shows those that differ from the last, and that of ``size``."""

    def __init__(self, size: int, painter: Painter, show: Callable[[str], object]) -> None:
        self._size = size
        self._painter = painter
        self._show = show
        self._offset = 0
        self._begun = b""  # of a line
        self._last: bytes | None = None
        self._starred = False

    def take(self, data: bytes) -> None:
        data = self._begun + data
        whole = len(data) - len(data) % WIDTH
        self._begun = data[whole:]
        if self._last is not None and data[:whole] == self._last * (whole // WIDTH):
            self._repeat(whole // WIDTH)
            return
        for start in range(0, whole, WIDTH):
            self._line(data[start : start + WIDTH])

    def take_zeroes(self, length: int) -> None:
        """As many zeroes, which may be more than fits in memory."""
        first = min(length, WIDTH - len(self._begun))
        self.take(bytes(first))
        if length > first:
            self.take(bytes(min(length - first, WIDTH)))
            rest = max(length - first - WIDTH, 0)
            self._repeat(rest // WIDTH)
            self.take(bytes(rest % WIDTH))

    def finish(self) -> None:
        if self._begun:
            self._line(self._begun)

    def _repeat(self, count: int) -> None:
        """The last line again, so many times."""
        if count and self._last is not None:
            self._line(self._last)
            self._offset += max(count - 2, 0) * WIDTH
            if count > 1:
                self._line(self._last)

    def _line(self, data: bytes) -> None:
        offset, self._offset = self._offset, self._offset + len(data)
        whole = data.ljust(WIDTH, b"\0")
        if whole == self._last and offset + WIDTH < self._size:
            if not self._starred:
                self._show("*")
            self._starred = True
            return
        self._last, self._starred = whole, False
        self._show(self._text(offset, data))

    def _text(self, offset: int, data: bytes) -> str:
        digits, letters = self._columns(data)
        missing = WIDTH - len(data)
        gap = " " * (3 * missing + (missing > WIDTH // 2))
        place = self._painter.paint(f"{offset:010x}", Colour.GOOD)
        return f"{place}: {digits}{gap}|{letters}{' ' * missing}|"

    def _columns(self, data: bytes) -> tuple[str, str]:
        """``data`` as digits with a space behind each byte and the eighth, and as text."""
        paint, half = self._painter.paint, WIDTH // 2
        letters = data.translate(_AS_TEXT).decode("ascii")
        pairs = [f"{byte:02x} " for byte in data]
        if self._painter.enabled:
            colours = [Colour.STRONG if byte else Colour.FAINT for byte in data]
            pairs = [paint(pair, colour) for pair, colour in zip(pairs, colours, strict=True)]
            letters = "".join(
                paint(letter, Colour.BAD if byte in _PRINTABLE else Colour.FAINT)
                for letter, byte in zip(letters, data, strict=True)
            )
        if len(data) >= half:
            pairs.insert(half, " ")
        return "".join(pairs), letters
