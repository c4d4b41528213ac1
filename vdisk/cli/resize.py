"""Grow or shrink an image: to a size, or by one.

Examples:
  vdisk resize disk.qcow2 40G
  vdisk resize disk.qcow2 +10G
  vdisk resize --shrink disk.qcow2 -5G
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vdisk.cli.options import add_quiet, add_source, open_source
from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.block import BlockDevice
    from vdisk.cli.options import Parser
    from vdisk.formats.qcow2 import Qcow2Image
    from vdisk.formats.raw import RawImage

_PREALLOCATION = ("off", "metadata", "falloc", "full")


def configure(parser: Parser) -> None:
    add_source(parser, force_share=False)
    add_quiet(parser)
    parser.add_argument(
        "--shrink", action="store_true", help="allow data beyond the new end to be lost"
    )
    parser.add_argument(
        "--preallocation", choices=_PREALLOCATION, default="off", help="what new space gets now"
    )
    parser.add_argument("image", help="the image")
    parser.take_last("size", "[+|-]SIZE", "the new size, or how much more or less")


def run(args: Namespace) -> int:
    with open_source(args, args.image, readonly=False) as image:
        size = _new_size(args.size, image.size)
        if size < image.size and not args.shrink:
            raise InvalidRequestError(
                f"{args.image} would shrink from {image.size} to {size} bytes and lose what lies "
                "beyond: give --shrink if nothing there is needed"
            )
        if size <= image.size and args.preallocation != "off":
            raise InvalidRequestError("Preallocation can only be used for growing images")
        resize_device(image, size, args.preallocation)
    if not args.quiet:
        print("Image resized.")
    return 0


def _new_size(text: str, current: int) -> int:
    sign = text[:1] if text[:1] in ("+", "-") else ""
    given = parse_size(text.removeprefix(sign))
    size = current + given if sign == "+" else current - given if sign == "-" else given
    if size <= 0:
        raise InvalidRequestError(f"the new size would be {size}: it must be positive")
    return size


def resize_device(image: BlockDevice, size: int, preallocation: str) -> None:
    """Resize; what a format does not do itself about new space is said, not left out."""
    if preallocation == "off":
        image.truncate(size)
        return
    match getattr(image, "format_name", None):
        case "qcow2":
            cast("Qcow2Image", image).resize(size, preallocation)
        case "raw" if preallocation != "metadata":
            from vdisk.formats.raw import preallocate

            old_size = image.size
            image.truncate(size)
            preallocate(cast("RawImage", image).file, old_size, size, preallocation)
        case name:
            raise UnsupportedFeatureError(
                f"format {name} cannot preallocate {preallocation!r}", path=image.name
            )
