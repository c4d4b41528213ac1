"""Show what an image is: its format, sizes, backing file, snapshots and features.

Examples:
  vdisk info disk.qcow2
  vdisk info --backing-chain --output=json disk.qcow2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.cli.options import add_output, add_source, image_name, secrets

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from vdisk.cli.options import Parser
    from vdisk.jobs.info import ImageInfo


def configure(parser: Parser) -> None:
    add_source(parser)
    add_output(parser)
    parser.add_argument(
        "--backing-chain", action="store_true", help="show the backing files below it too"
    )
    parser.add_argument("image", help="the image")


def run(args: Namespace) -> int:
    from vdisk.jobs.info import info

    found = info(
        image_name(args, args.image, args.format),
        format=args.format,
        chain=args.backing_chain,
        backing=not args.no_backing,
        force_share=args.force_share,
        secrets=secrets(args),
    )
    if args.output == "json":
        from vdisk.cli.output import print_json

        images = [each.to_json() for each in found.chain()]
        print_json(images if args.backing_chain else images[0])
    else:
        print("\n\n".join("\n".join(_lines(each)) for each in found.chain()))
        if found.backing is not None:
            print("\nBacking chain:\n" + _chain_table(found))
    return 0


def _lines(image: ImageInfo) -> Iterator[str]:
    yield f"image: {image.filename}"
    yield f"file format: {image.format}"
    yield f"virtual size: {_size(image.virtual_size)} ({image.virtual_size} bytes)"
    yield f"disk size: {_actual_size(image)}"
    if image.encrypted:
        yield "encrypted: yes"
    if image.cluster_size is not None:
        yield f"cluster_size: {image.cluster_size}"
    if image.dirty:
        yield "cleanly shut down: no"
    if image.backing_filename is not None:
        yield from _backing_lines(image)
    if image.snapshots:
        from vdisk.cli.snapshot import listing

        yield listing(image.snapshots)
    if image.format_specific is not None:
        yield "Format specific information:"
        yield from tree_lines(image.format_specific["data"], "    ")


def _backing_lines(image: ImageInfo) -> Iterator[str]:
    full = image.full_backing_filename
    actual = "" if full == image.backing_filename else f" (actual path: {full})"
    yield f"backing file: {image.backing_filename}{actual}"
    if image.backing_format is not None:
        yield f"backing file format: {image.backing_format}"


def tree_lines(value: dict[str, Any] | list[Any], indent: str) -> Iterator[str]:
    """Nested dictionaries and lists, one leaf a line, in the order of the JSON form."""
    from vdisk.cli.output import in_json_order

    if isinstance(value, list):
        pairs = [(f"[{index}]", item) for index, item in enumerate(value)]
    else:
        pairs = [(key.replace("-", " "), item) for key, item in in_json_order(value)]
    for name, item in pairs:
        if isinstance(item, dict | list):
            yield f"{indent}{name}:"
            yield from tree_lines(item, indent + "    ")
        else:
            shown = str(item).lower() if isinstance(item, bool) else item
            yield f"{indent}{name}: {shown}"


def _chain_table(top: ImageInfo) -> str:
    from vdisk.cli.output import table

    rows = [
        (str(depth), image.format, _size(image.virtual_size), _actual_size(image), image.filename)
        for depth, image in enumerate(top.chain())
    ]
    return table(("DEPTH", "FORMAT", "VIRTUAL", "ON-DISK", "IMAGE"), rows, "DEPTH,VIRTUAL,ON-DISK")


def _actual_size(image: ImageInfo) -> str:
    return "unavailable" if image.actual_size is None else _size(image.actual_size)


def _size(size: int) -> str:
    from vdisk.units import format_size

    return format_size(size)
