"""Change the dirty bitmaps of an image, by actions carried out in the order they are given.

Examples:
  vdisk bitmap --add -g 64k disk.qcow2 backup
  vdisk bitmap --disable --clear disk.qcow2 backup
  vdisk bitmap --merge monday --merge tuesday -b old.qcow2 -F qcow2 disk.qcow2 week
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vdisk.cli.options import add_source, as_qcow2, open_source, secrets, warn
from vdisk.errors import InvalidRequestError
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser
    from vdisk.formats.qcow2 import Qcow2Image

SMALLEST_DEFAULT_GRANULARITY = 4096
"""A bit stands for a cluster where -g does not say, but for no less than this, as in QEMU."""

_ACTIONS = {
    "add": "add the bitmap",
    "remove": "remove it",
    "clear": "forget what it recorded",
    "enable": "record writes from now on",
    "disable": "record no writes",
}


def configure(parser: Parser) -> None:
    add_source(parser, force_share=False)
    for name, help in _ACTIONS.items():
        parser.add_argument(
            f"--{name}", dest="actions", action="append_const", const=(name, None), help=help
        )
    parser.add_argument(
        "--merge",
        dest="actions",
        action="append",
        type=_merge,
        metavar="SOURCE",
        help="add to it what the bitmap SOURCE recorded",
    )
    parser.add_argument(
        "-b", "--source-file", dest="source_image", metavar="FILE", help="SOURCEs are in this image"
    )
    parser.add_argument(
        "-F", "--source-format", dest="source_format", metavar="FORMAT", help="its format"
    )
    parser.add_argument(
        "-g", "--granularity", metavar="SIZE", help="with --add: bytes that one bit stands for"
    )
    parser.add_argument("image", help="the image")
    parser.add_argument("bitmap", help="the bitmap that is changed")


def _merge(source: str) -> tuple[str, str]:
    return "merge", source


def run(args: Namespace) -> int:
    actions: list[tuple[str, str | None]] = args.actions or []
    _check(args, [name for name, _ in actions])
    from vdisk.opening import Backing, open_image

    with contextlib.ExitStack() as opened:
        # What is below is not looked at: it may be absent, or the image that is changed.
        device = opened.enter_context(
            open_source(args, args.image, readonly=False, backing=Backing.LEAVE)
        )
        image = as_qcow2(device, "bitmaps")
        source = image
        if args.source_image is not None:
            found = open_image(
                args.source_image,
                format=args.source_format,
                backing=Backing.REFUSE if args.no_backing else Backing.LEAVE,
                secrets=secrets(args),
                warn=warn,
            )
            source = as_qcow2(opened.enter_context(found), "bitmaps")
        for name, other in actions:
            _act(args, image, name, source, other)
    return 0


def _check(args: Namespace, names: list[str]) -> None:
    if not names:
        raise InvalidRequestError(
            "nothing to do: give one or more of --add, --remove, --clear, --enable, --disable "
            "and --merge"
        )
    if args.granularity is not None and "add" not in names:
        raise InvalidRequestError("-g is about the bitmap that --add makes")
    if args.source_image is not None and "merge" not in names:
        raise InvalidRequestError("-b names the image of the bitmaps that --merge reads")
    if args.source_format is not None and args.source_image is None:
        raise InvalidRequestError("-F is the format of the image that -b names")


def _act(
    args: Namespace, image: Qcow2Image, action: str, source: Qcow2Image, other: str | None
) -> None:
    name: str = args.bitmap
    if other is not None:
        image.merge_bitmap(name, list(source.dirty_ranges(other)))
    elif action == "add":
        granularity = max(image.cluster_size, SMALLEST_DEFAULT_GRANULARITY)
        if args.granularity is not None:
            granularity = parse_size(args.granularity, what="-g")
        image.add_bitmap(name, granularity)
    elif action == "remove":
        image.remove_bitmap(name)
    elif action == "clear":
        image.clear_bitmap(name)
    elif action == "enable":
        image.enable_bitmap(name)
    else:
        image.disable_bitmap(name)
