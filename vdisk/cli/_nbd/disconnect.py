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
    from vdisk.stores._nbd import kernel, kernel_ioctl

    number = device_index(args.device)
    if kernel.has_netlink():
        kernel.disconnect_device(number)
    else:
        kernel_ioctl.disconnect(number)
    return 0
