"""Tell whether two images hold the same disk, whatever their formats.

Exit status: 0 identical, 1 different, 2 an image cannot be opened, 3 its map cannot be read,
4 its data cannot be read.

Examples:
  vdisk compare disk.raw disk.qcow2
  vdisk compare -s -f qcow2 -F qcow2 one.qcow2 other.qcow2
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from vdisk.cli.options import (
    add_cache,
    add_format,
    add_progress,
    add_quiet,
    add_source,
    complain,
    open_source,
)
from vdisk.errors import VdiskError

if TYPE_CHECKING:
    from vdisk.block import BlockDevice
    from vdisk.cli.options import Parser
    from vdisk.jobs.compare import CompareResult

ERROR_STATUS = 2

_MAP_FAILED = 3
_READ_FAILED = 4


def configure(parser: Parser) -> None:
    add_source(parser)
    add_format(parser, "-F", "second_format", "format of the second image (likewise)")
    add_cache(parser, "-T", of="each image")
    add_progress(parser)
    add_quiet(parser)
    parser.add_argument(
        "-s",
        dest="strict",
        action="store_true",
        help="sizes and allocation that differ count as differences",
    )
    parser.add_argument("first", help="an image")
    parser.add_argument("second", help="another image")


def run(args: Namespace) -> int:
    from vdisk.cli.output import Progress
    from vdisk.jobs.compare import compare

    second_args = Namespace(**{**vars(args), "format": args.second_format})  # -f is the first's
    with (
        open_source(args, args.first, cache=args.cache) as first,
        open_source(second_args, args.second, cache=args.cache) as second,
    ):
        try:
            with Progress(args.progress and not args.quiet) as progress:
                result = compare(first, second, strict=args.strict, progress=progress)
        except VdiskError as error:
            complain(str(error))
            return _READ_FAILED if error.operation == "read" else _MAP_FAILED
        if not args.quiet:
            _report(result, first, second)
        return 0 if result.identical else 1


def _report(result: CompareResult, first: BlockDevice, second: BlockDevice) -> None:
    """What qemu-img prints: a warning if only the sizes differ so far, then the result."""
    from vdisk.jobs.compare import Difference

    common = min(first.size, second.size)
    beyond = result.offset is None or result.offset >= common
    if result.difference is Difference.SIZE:
        print("Strict mode: Image size mismatch!")
        return
    if first.size != second.size and beyond:
        print("Warning: Image size mismatch!")
    if result.difference is Difference.ALLOCATION:
        print(f"Strict mode: Offset {result.offset} block status mismatch!")
    elif result.difference is Difference.CONTENT:
        print(f"Content mismatch at offset {result.offset}!")
    else:
        print("Images are identical.")
