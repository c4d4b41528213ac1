"""Write the changes that an overlay holds into its backing file, and empty the overlay.

With -b the changes go into an image further down the chain; the images between the two are
then no longer valid, and the overlay is not emptied.

Examples:
  vdisk commit -p overlay.qcow2
  vdisk commit -b base.qcow2 overlay.qcow2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.cli.options import (
    add_cache,
    add_progress,
    add_quiet,
    add_source,
    image_name,
    refuse_no_backing,
    secrets,
    warn,
)
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser


def configure(parser: Parser) -> None:
    add_source(parser, force_share=False)
    add_cache(parser)
    add_progress(parser)
    add_quiet(parser)
    parser.add_argument("-b", dest="base", metavar="IMAGE", help="the image to write into")
    parser.add_argument("-d", dest="keep", action="store_true", help="do not empty the overlay")
    parser.add_argument("-r", dest="rate_limit", metavar="SIZE", help="bytes a second at most")
    parser.add_argument("image", help="the overlay")


def run(args: Namespace) -> int:
    from vdisk.cli.output import Progress
    from vdisk.jobs.commit import commit

    refuse_no_backing(args)
    limit = args.rate_limit
    with Progress(args.progress and not args.quiet) as progress:
        commit(
            image_name(args, args.image, args.format),
            base=args.base,
            format=args.format,
            empty=not args.keep,
            rate_limit=None if limit is None else parse_size(limit, what="-r"),
            cache=args.cache,
            secrets=secrets(args),
            warn=warn,
            progress=progress,
        )
    if not args.quiet:
        print("Image committed.")
    return 0
