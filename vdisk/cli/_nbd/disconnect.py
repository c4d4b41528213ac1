"""Take a block device /dev/nbdN away from its NBD server.

Examples:
  vdisk-nbd disconnect /dev/nbd3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser


def configure(parser: Parser) -> None:
    parser.add_argument("device", help="/dev/nbdN")


def run(args: Namespace) -> int:
    from vdisk.cli._nbd.connect import device_index
    from vdisk.stores._nbd.kernel import disconnect_device

    disconnect_device(device_index(args.device))
    return 0
