"""Make an NBD export a block device of this system, /dev/nbdN (Linux, as root).

Prints the device's name.  The kernel does the rest by itself (one that is told by ioctl, not by
netlink, keeps a process of ours); take the device away again with "vdisk-nbd disconnect".

Examples:
  vdisk-nbd connect nbd://example.com/disk
  vdisk-nbd connect --device /dev/nbd3 --timeout 30 nbd://example.com/disk
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser
    from vdisk.stores._nbd.handshake import Server
    from vdisk.stores._nbd.kernel import Device


def configure(parser: Parser) -> None:
    parser.add_argument("-d", "--device", metavar="DEVICE", help="/dev/nbdN (default: a free one)")
    parser.add_argument("-b", "--block-size", type=int, metavar="N", help="bytes of a block")
    parser.add_argument(
        "-t", "--timeout", type=int, default=0, metavar="N", help="seconds until requests fail"
    )
    parser.add_argument(
        "--dead-timeout",
        type=int,
        default=0,
        metavar="N",
        help="seconds that requests wait after the connection was lost",
    )
    parser.add_argument(
        "-C",
        "--connections",
        type=int,
        default=1,
        metavar="N",
        help="connections, where the server allows several",
    )
    parser.add_argument(
        "--how",
        choices=("auto", "netlink", "ioctl"),
        default="auto",
        help="how the kernel is told (default: by netlink where it has that)",
    )
    parser.add_argument("uri", help="the export")


def run(args: Namespace) -> int:
    from vdisk.cli._nbd._exports import plain_server
    from vdisk.stores._nbd.kernel import Device, connect_device, has_netlink
    from vdisk.stores._nbd.pool import MAX_CONNECTIONS

    if min(args.timeout, args.dead_timeout) < 0:
        raise InvalidRequestError("a time-out is not negative")
    if not 1 <= args.connections <= MAX_CONNECTIONS:
        raise InvalidRequestError(f"--connections is between 1 and {MAX_CONNECTIONS}")
    server = plain_server(args.uri, "the kernel's client does not encrypt")
    device = Device(
        number=None if args.device is None else device_index(args.device),
        block_size=args.block_size,
        timeout=args.timeout,
        dead_timeout=args.dead_timeout,
        connections=args.connections,
    )
    if args.how == "netlink" or (args.how == "auto" and has_netlink()):
        print(f"/dev/nbd{connect_device(server, device)}")
    else:
        _run_by_ioctl(server, device)
    return 0


def _run_by_ioctl(server: Server, device: Device) -> None:
    """Print the device's name, and be its process in the background."""
    from vdisk.cli._nbd._daemon import fork
    from vdisk.stores._nbd.kernel_ioctl import attach

    ready = fork()
    with attach(server, device) as attached:
        print(attached.path, flush=True)
        ready()
        attached.run()


def device_index(name: str) -> int:
    """N of /dev/nbdN."""
    digits = name.removeprefix("/dev/").removeprefix("nbd")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
        raise InvalidRequestError(f"{name!r} is no /dev/nbdN")
    return int(digits)
