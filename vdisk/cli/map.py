"""Show where an image's data lies: in which file of its chain, and where in that file.

Examples:
  vdisk map disk.qcow2
  vdisk map --output=json --start-offset=1G --max-length=64M disk.qcow2
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vdisk.cli.options import add_output, add_source, open_source
from vdisk.errors import UnsupportedFeatureError
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from vdisk.cli.options import Parser
    from vdisk.jobs.map import MapEntry

_BATCH = 4096
"""Lines written at once: a large image has millions."""


def configure(parser: Parser) -> None:
    add_source(parser)
    add_output(parser)
    parser.add_argument("-s", "--start-offset", metavar="OFFSET", help="begin here")
    parser.add_argument("-l", "--max-length", metavar="LENGTH", help="show that many bytes")
    parser.add_argument("image", help="the image")


def run(args: Namespace) -> int:
    start = parse_size(args.start_offset or "0", what="--start-offset")
    length = None if args.max_length is None else parse_size(args.max_length, what="--max-length")
    with open_source(args, args.image) as image:
        from vdisk.jobs.map import map_entries

        entries = map_entries(image, start, length)
        _write(_json_lines(entries) if args.output == "json" else _human_lines(entries))
    return 0


def _write(lines: Iterator[str]) -> None:
    batch: list[str] = []
    try:
        for line in lines:
            batch.append(line)
            if len(batch) == _BATCH:
                sys.stdout.write("".join(batch))
                batch.clear()
    finally:
        sys.stdout.write("".join(batch))


def _json_lines(entries: Iterable[MapEntry]) -> Iterator[str]:
    words = ("false", "true")
    before = "["
    for start, length, depth, present, zero, data, offset, _name in entries:
        place = "" if offset is None else f', "offset": {offset}'
        yield (
            f'{before}{{ "start": {start}, "length": {length}, "depth": {depth}, '
            f'"present": {words[present]}, "zero": {words[zero]}, "data": {words[data]}{place}}}'
        )
        before = ",\n"
    yield "]\n"


def _human_lines(entries: Iterable[MapEntry]) -> Iterator[str]:
    yield f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n"
    for entry in entries:
        if not entry.data or entry.zero:
            continue
        if entry.offset is None:
            raise UnsupportedFeatureError(
                f"the data at {entry.start:#x} is compressed or encrypted and stands nowhere as it "
                "is read: use --output=json"
            )
        yield (
            f"{_hexadecimal(entry.start)}{_hexadecimal(entry.length)}"
            f"{_hexadecimal(entry.offset)}{entry.filename}\n"
        )


def _hexadecimal(value: int) -> str:
    """As C's ``%#-16llx``, which writes zero without its prefix."""
    return f"{value:<#16x}" if value else f"{'0':<16}"
