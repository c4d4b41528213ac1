"""Give an overlay another backing file.

The disk in the overlay stays as it is: what the new backing file holds otherwise is copied into
the overlay first. With -u only the name is changed, for a backing file that was moved; with
-b "" the overlay becomes an image of its own.

Examples:
  vdisk rebase -b newer.qcow2 -F qcow2 overlay.qcow2
  vdisk rebase -u -b /moved/base.qcow2 -F qcow2 overlay.qcow2
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

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser


def configure(parser: Parser) -> None:
    add_source(parser, force_share=False)
    add_cache(parser, of="the overlay")
    add_cache(parser, "-T", "source_cache", of="each backing file")
    add_progress(parser)
    add_quiet(parser)
    parser.add_argument("-u", dest="unsafe", action="store_true", help="change the name only")
    parser.add_argument(
        "-b", dest="backing", metavar="FILE", required=True, help="backing file; '' for none"
    )
    parser.add_argument("-F", dest="backing_format", metavar="FORMAT", help="its format")
    parser.add_argument("image", help="the overlay")


def run(args: Namespace) -> int:
    from vdisk.cli.output import Progress
    from vdisk.jobs.rebase import rebase

    refuse_no_backing(args)
    with Progress(args.progress and not args.quiet) as progress:
        rebase(
            image_name(args, args.image, args.format),
            args.backing,
            format=args.format,
            backing_format=args.backing_format,
            unsafe=args.unsafe,
            cache=args.cache,
            source_cache=args.source_cache,
            secrets=secrets(args),
            warn=warn,
            progress=progress,
        )
    return 0
