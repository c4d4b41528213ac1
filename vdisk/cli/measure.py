"""Tell how large the file of a new image would be, from a size or from an image to convert.

Examples:
  vdisk measure -O qcow2 --size 100G
  vdisk measure -O qcow2 -o cluster_size=2M --output=json disk.raw
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from vdisk.cli.convert import snapshot_tag
from vdisk.cli.options import (
    add_creation_options,
    add_format,
    add_output,
    add_source,
    creation_options,
    open_source,
)
from vdisk.errors import InvalidRequestError
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser


def configure(parser: Parser) -> None:
    add_source(parser)
    add_creation_options(parser)
    add_output(parser)
    add_format(parser, "-O", "target_format", "format of the new image (default raw)", "raw")
    parser.add_argument("-l", dest="snapshot", metavar="SNAPSHOT", help="id or name of a snapshot")
    parser.add_argument("--size", help="measure an empty image of this size")
    parser.add_argument("image", nargs="?", help="measure what converting this image makes")


def run(args: Namespace) -> int:
    options = creation_options(args, args.target_format)
    from vdisk.jobs.measure import measure

    if (args.size is None) == (args.image is None):
        raise InvalidRequestError("either --size or the name of one image is needed, and not both")
    with ExitStack() as stack:
        source = None
        if args.image is not None:
            source = stack.enter_context(open_source(args, args.image))
        result = measure(
            source,
            size=None if args.size is None else parse_size(args.size),
            snapshot=None if args.snapshot is None else snapshot_tag(args.snapshot),
            target_format=args.target_format,
            options=options,
        )
    answer = {"required": result.required, "fully-allocated": result.fully_allocated}
    if result.bitmaps is not None:
        answer["bitmaps"] = result.bitmaps
    if args.output == "json":
        from vdisk.cli.output import print_json

        print_json(answer)
        return 0
    print(f"required size: {result.required}")
    print(f"fully allocated size: {result.fully_allocated}")
    if result.bitmaps is not None:
        print(f"bitmaps size: {result.bitmaps}")
    return 0
