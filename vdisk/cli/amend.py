"""Change the options of an existing image.

Examples:
  vdisk amend -o compat=1.1,lazy_refcounts=on disk.qcow2
  vdisk amend -f qcow2 -o help
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vdisk.cli.options import (
    add_cache,
    add_creation_options,
    add_progress,
    add_quiet,
    add_source,
    open_source,
    wants_help,
)
from vdisk.errors import InvalidRequestError, UnsupportedFeatureError

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser
    from vdisk.formats import CreateOption
    from vdisk.formats.luks import LuksImage
    from vdisk.formats.qcow2 import Qcow2Image


def configure(parser: Parser) -> None:
    add_source(parser, force_share=False)
    add_creation_options(parser)
    add_cache(parser)
    add_progress(parser)
    add_quiet(parser)
    parser.add_argument(
        "--force", action="store_true", help="allow the last passphrase to be erased or replaced"
    )
    parser.add_argument("image", nargs="?", help="the image")


def run(args: Namespace) -> int:
    if wants_help(args) and args.format is not None:
        return _help(args.format)
    if args.image is None:
        raise InvalidRequestError("the name of the image is missing")
    if not args.options:
        raise InvalidRequestError("nothing to change: name options with -o")
    with open_source(args, args.image, readonly=False, cache=args.cache) as image:
        format = getattr(image, "format_name", "raw")
        if wants_help(args):
            return _help(format)
        from vdisk.cli.output import Progress
        from vdisk.opening.creating import convert_options
        from vdisk.options import parse_keyval

        options = convert_options(format, parse_keyval(",".join(args.options)), _amendable(format))
        with Progress(args.progress and not args.quiet) as progress:
            cast("Qcow2Image | LuksImage", image).amend(
                options, force=args.force, progress=progress
            )
    return 0


def _amendable(format: str) -> tuple[CreateOption, ...]:
    """The options that images of ``format`` can change."""
    from vdisk import formats

    found: Any = getattr(formats.driver(format), "amend_options", None)
    if not found:
        raise UnsupportedFeatureError(f"Format driver '{format}' does not support option amendment")
    return cast("tuple[CreateOption, ...]", found)


def _help(format: str) -> int:
    from vdisk.cli.output import print_options

    print(f"Amend options for '{format}':")
    print_options(_amendable(format))
    return 0
