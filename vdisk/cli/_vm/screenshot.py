"""Boot disk images, CD-ROMs or a kernel, and write a picture of the screen.

Examples:
  vdisk-vm screenshot disk.qcow2 -o boot.png                when nothing has changed for a while
  vdisk-vm screenshot --cdrom grub.iso -o menu.png --until-text 'GNU GRUB'
  vdisk-vm screenshot disk.qcow2 -o login.png --until-serial 'login: ' --type 'root\\n'

The images are not changed: writes are thrown away.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vdisk.cli._vm import _options
from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    import argparse

    from vdisk.cli.options import Parser
    from vdisk.vm import Machine

LOOK_SECONDS = 0.1


def configure(parser: Parser) -> None:
    parser.take_one_dash()
    parser.add_argument("images", nargs="*", metavar="IMAGE[,OPTION…]", help="as --disk")
    _options.add_hardware(parser)
    _options.add_booting(parser)
    _options.add_determinism(parser)
    group = parser.add_argument_group("the picture")
    add = group.add_argument
    add("-o", "--output", metavar="FILE", required=True, help="a .png or .ppm file")
    add("--until-text", metavar="TEXT", help="when the screen shows this text")
    add("--until-serial", metavar="TEXT", help="when the guest has sent it on its serial line")
    add("--after", metavar="SECONDS", type=float, help="so long after power-on")
    add("--still", metavar="SECONDS", type=float, default=3.0,
        help="otherwise: when the screen has not changed for so long (3 by default)")  # fmt: skip
    add("--type", dest="keys", metavar="KEYS", default="",
        help="type this then, and wait until the screen is still again; \\n is Enter")  # fmt: skip
    add("--timeout", metavar="SECONDS", type=float, default=120.0, help="give up after so long")


def run(args: argparse.Namespace) -> int:
    if args.vga == "none":
        raise InvalidRequestError("a machine without a video card has no screen")
    args.snapshot = True
    deadline = time.monotonic() + args.timeout
    with _options.make_machine(args) as machine:
        if args.loadvm is not None:
            machine.load(args.loadvm)
        machine.start()
        _wait(machine, args, deadline)
        if args.keys:
            machine.type_keys(args.keys.replace("\\n", "\n"))
            _wait_until_still(machine, args.still, deadline)
        machine.screenshot(args.output)
        if args.record is not None:
            machine.stop()
            machine.save_journal(args.record)
    return 0


def _wait(machine: Machine, args: argparse.Namespace, deadline: float) -> None:
    if args.until_serial is not None:
        machine.run_until(serial=args.until_serial, timeout=deadline - time.monotonic())
    if args.until_text is not None:
        machine.run_until(screen=args.until_text, timeout=deadline - time.monotonic())
    if args.after is not None:
        machine.wait(min(args.after, deadline - time.monotonic()))
    elif args.until_serial is None and args.until_text is None:
        _wait_until_still(machine, args.still, deadline)


def _wait_until_still(machine: Machine, still: float, deadline: float) -> None:
    """Until the picture (not the blinking of its cursor) has not changed for ``still`` seconds."""
    picture, since = machine.screen.frame(), time.monotonic()
    while time.monotonic() < min(since + still, deadline) and not machine.is_over():
        time.sleep(LOOK_SECONDS)
        now = machine.screen.frame()
        if now != picture:
            picture, since = now, time.monotonic()
