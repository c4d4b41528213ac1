"""Copy the disk in one image, or in several that follow one another, into a new image.

Examples:
  vdisk convert -p -O qcow2 disk.raw disk.qcow2
  vdisk convert -O qcow2 -c -o compression_type=zstd disk.qcow2 packed.qcow2
  vdisk convert -l before-upgrade -O raw disk.qcow2 old.raw
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.cli.options import (
    add_cache,
    add_creation_options,
    add_format,
    add_progress,
    add_quiet,
    add_source,
    creation_options,
    image_name,
    secrets,
    warn,
)
from vdisk.errors import InvalidRequestError
from vdisk.options import parse_keyval
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser


def configure(parser: Parser) -> None:
    add_source(parser)
    add_cache(parser, "-T", "source_cache", of="what is read")
    add_cache(parser, "-t", "target_cache", default="unsafe", of="the target")
    add_progress(parser)
    add_quiet(parser)
    add_creation_options(parser)
    _add_target_options(parser)
    _add_copying_options(parser)
    parser.add_argument("images", nargs="*", metavar="image", help="what is read; then the target")


def _add_target_options(parser: Parser) -> None:
    add_format(parser, "-O", "target_format", "format of the target (default raw)")
    parser.add_argument("-B", dest="backing", metavar="FILE", help="backing file of the target")
    parser.add_argument("-F", dest="backing_format", metavar="FORMAT", help="its format")
    parser.add_argument(
        "-n", dest="exists", action="store_true", help="write into an image that exists"
    )
    parser.add_argument(
        "--target-is-zero", action="store_true", help="with -n: the target reads as zeroes"
    )
    parser.add_argument(
        "--target-image-opts", action="store_true", help="the target is a list of options"
    )


def _add_copying_options(parser: Parser) -> None:
    parser.add_argument("-c", dest="compress", action="store_true", help="compress the target")
    parser.add_argument(
        "-S",
        dest="sparse_size",
        metavar="SIZE",
        help="zeroes in a row that become a hole (default 4k); 0: allocate everything",
    )
    parser.add_argument(
        "-l", dest="snapshot", metavar="SNAPSHOT", help="copy this snapshot: its id or name"
    )
    parser.add_argument(
        "-m", dest="workers", type=int, metavar="N", help="threads (default: as many as processors)"
    )
    parser.add_argument(
        "-W",
        dest="out_of_order",
        action="store_true",
        help="threads write as they come, not in order",
    )
    parser.add_argument("-r", dest="rate_limit", metavar="SIZE", help="bytes a second at most")
    parser.add_argument(
        "-C",
        dest="offload",
        action="store_true",
        help="let the system copy between files, without looking for zeroes",
    )
    parser.add_argument(
        "--salvage", action="store_true", help="write zeroes for what cannot be read"
    )
    parser.add_argument("--bitmaps", action="store_true", help="copy persistent bitmaps too")
    parser.add_argument(
        "--skip-broken-bitmaps", action="store_true", help="but not those left open by a crash"
    )


def run(args: Namespace) -> int:
    options = creation_options(args, args.target_format or "raw")
    _check(args)
    from vdisk.cli.output import Progress
    from vdisk.jobs.convert import convert
    from vdisk.opening import Backing

    *sources, target = args.images
    with Progress(args.progress and not args.quiet) as progress:
        convert(
            [image_name(args, name, args.format) for name in sources],
            _target_name(args, target),
            format=args.format,
            snapshot=None if args.snapshot is None else snapshot_tag(args.snapshot),
            source_cache=args.source_cache,
            force_share=args.force_share,
            backing=Backing.REFUSE if args.no_backing else Backing.FOLLOW,
            target_format=None if args.target_image_opts else args.target_format or "raw",
            options=options,
            backing_file=args.backing,
            backing_format=args.backing_format,
            target_exists=args.exists,
            target_is_zero=args.target_is_zero,
            target_cache=args.target_cache,
            **_copying(args),
            secrets=secrets(args),
            warn=_silent if args.quiet else warn,
            progress=progress,
        )
    return 0


def _check(args: Namespace) -> None:
    if len(args.images) < 2:
        raise InvalidRequestError("convert takes at least two names: what is read and the target")
    if args.target_image_opts and not args.exists:
        raise InvalidRequestError("--target-image-opts names an image that exists: it needs -n")
    if args.target_image_opts and args.target_format is not None:
        raise InvalidRequestError("--target-image-opts states the format by driver=…: omit -O")
    if args.offload and args.sparse_size is not None:
        raise InvalidRequestError("with -C nobody looks for zeroes: leave -S out")
    if args.skip_broken_bitmaps and not args.bitmaps:
        raise InvalidRequestError("--skip-broken-bitmaps is about --bitmaps: give both")
    if args.exists and args.options:
        raise InvalidRequestError("-o has no effect when skipping image creation (-n)")


def _target_name(args: Namespace, name: str) -> str | dict[str, Any]:
    if not args.target_image_opts:
        return name
    from vdisk.opening.names import parse_image_options

    return parse_image_options(name)


def _copying(args: Namespace) -> dict[str, Any]:
    """The arguments of :func:`vdisk.jobs.convert.convert` about how to copy."""
    found: dict[str, Any] = {
        "compress": args.compress,
        "copy_offload": args.offload,
        "workers": args.workers,
        "out_of_order": args.out_of_order,
        "salvage": args.salvage,
        "bitmaps": args.bitmaps,
        "skip_broken_bitmaps": args.skip_broken_bitmaps,
    }
    if args.rate_limit is not None:
        found["rate_limit"] = parse_size(args.rate_limit, what="-r")
    if args.sparse_size is not None:
        found["sparse_size"] = parse_size(args.sparse_size, what="-S")
    return found


def snapshot_tag(text: str) -> str:
    """What ``-l`` names: ``ID_OR_NAME``, ``snapshot.id=ID`` or ``snapshot.name=NAME``."""
    if not text.startswith(("snapshot.id=", "snapshot.name=")):
        return text
    named = parse_keyval(text)
    if len(named) != 1:
        raise InvalidRequestError("-l takes an id or a name of a snapshot, not both")
    return next(iter(named.values()))


def _silent(_message: str) -> None:
    """-q: warnings too are left out."""
