"""Make a new image.

Examples:
  vdisk create -f qcow2 disk.qcow2 20G
  vdisk create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.cli.options import (
    add_creation_options,
    add_format,
    add_objects,
    add_quiet,
    creation_options,
    secrets,
)
from vdisk.errors import InvalidRequestError
from vdisk.options import escape_commas
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from vdisk.cli.options import Parser
    from vdisk.opening.creating import Creation


def configure(parser: Parser) -> None:
    add_format(parser, "-f", "format", "format of the image (default raw)")
    add_creation_options(parser)
    add_objects(parser)
    add_quiet(parser)
    parser.add_argument(
        "-b", dest="backing", metavar="FILE", help="backing file: the image holds what differs"
    )
    parser.add_argument(
        "-F", dest="backing_format", metavar="FORMAT", help="format of the backing file"
    )
    parser.add_argument(
        "-u",
        dest="unsafe",
        action="store_true",
        help="do not open the backing file, to see that it is there",
    )
    parser.add_argument("image", nargs="?", help="name of the new image")
    parser.add_argument("size", nargs="?", help="size of the disk: 512, 64k, 10G, 1.5T")


def run(args: Namespace) -> int:
    from vdisk.opening.creating import plan_creation

    format = args.format or "raw"
    options = _with_backing(args, creation_options(args, format))
    if args.image is None:
        raise InvalidRequestError("the name of the image is missing")
    creation = plan_creation(
        args.image,
        None if args.size is None else parse_size(args.size),
        format=format,
        options=options,
        check_backing=not args.unsafe,
        secrets=secrets(args),
    )
    if not args.quiet:
        print(_announcement(creation), flush=True)
    creation.run()
    return 0


def _with_backing(args: Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` with what -b and -F say."""
    for flag, name, value in (
        ("-b", "backing_file", args.backing),
        ("-F", "backing_fmt", args.backing_format),
    ):
        if value is None:
            continue
        if name in options:
            raise InvalidRequestError(f"{flag} and the option {name} say the same: give one")
        options[name] = value
    return options


_ORDER = (
    "encryption",
    "encrypt.format",
    "encrypt.key-secret",
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
    "cluster_size",
    "extended_l2",
    "preallocation",
    "compression_type",
    "size",
    "key-secret",
    "cipher-alg",
    "cipher-mode",
    "ivgen-alg",
    "ivgen-hash-alg",
    "hash-alg",
    "iter-time",
    "compat",
    "backing_file",
    "backing_fmt",
    "data_file",
    "data_file_raw",
    "lazy_refcounts",
    "refcount_bits",
)
"""The order of qemu-img's announcement, which scripts parse."""

_ANNOUNCED_DEFAULTS = frozenset(
    {"cluster_size", "extended_l2", "compression_type", "lazy_refcounts", "refcount_bits"}
)


def _announcement(creation: Creation) -> str:
    """The line ``Formatting 'disk.qcow2', fmt=qcow2 cluster_size=65536 …``."""
    from vdisk import formats
    from vdisk.opening.creating import convert_option

    values = {**creation.options, "size": creation.size}
    for option in formats.driver(creation.format).create_options:
        if option.name in _ANNOUNCED_DEFAULTS and option.default is not None:
            values.setdefault(option.name, convert_option(option, option.default))
    order = [*_ORDER, *sorted(values.keys() - set(_ORDER))]
    if creation.format == "raw":
        order.insert(0, "size")
    shown = " ".join(f"{name}={_text(values.pop(name))}" for name in order if name in values)
    return f"Formatting '{creation.name}', fmt={creation.format} {shown}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return escape_commas(value) if isinstance(value, str) else str(value)
