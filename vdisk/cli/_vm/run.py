"""Boot disk images, CD-ROMs or a kernel, and show the machine.

Examples:
  vdisk-vm run disk.qcow2                                   its screen in this terminal
  vdisk-vm run --serial stdio --disk disk.qcow2,if=virtio   its serial line in this terminal
  vdisk-vm run --snapshot nbd://localhost/export --display vnc
  vdisk-vm run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --nographic

Options may begin with one dash, and most have QEMU's names.

The machine ends when the guest turns it off, by Ctrl-C, or through the monitor (Alt-2 on the text
display, Ctrl-A C on a serial line).  The status is 0 then, 1 if it could not go on, and what the
guest wrote if it ended itself through the isa-debug-exit port.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from vdisk.cli._vm import _options
from vdisk.cli.options import complain
from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    import argparse

    from vdisk.cli.options import Parser
    from vdisk.vm import Machine

DISPLAYS = ("none", "text", "vnc", "web")
ON_TERMINAL = ("stdio", "mon:stdio")


def configure(parser: Parser) -> None:
    parser.take_one_dash()
    parser.add_argument("images", nargs="*", metavar="IMAGE[,OPTION…]", help="as --disk")
    _options.add_hardware(parser)
    _options.add_booting(parser)
    _options.add_determinism(parser)
    group = parser.add_argument_group("looking at it")
    add = group.add_argument
    add("--display", metavar="none|text|vnc[=HOST:N]|web[=HOST:PORT]", action="append", default=[],
        help="where the screen is shown; text, in a terminal, is the default")  # fmt: skip
    add("--vnc", metavar="[HOST]:N[,share=…]", action="append", default=[],
        help="as --display vnc=HOST:N")  # fmt: skip
    add("--nographic", action="store_true",
        help="no display; the first serial line, and the monitor, in this terminal")  # fmt: skip
    add("--password-file", metavar="FILE", help="VNC clients have to know its first line")
    add("--serial", metavar="stdio|none|FILE|unix:PATH|tcp:HOST:PORT", action="append",
        default=[], help="where COM1, COM2 … lead; may be repeated")  # fmt: skip
    add("--debugcon", metavar="FILE", help="write what the guest says on ports E9h and 402h")
    add("--monitor", metavar="none|stdio|unix:PATH|HOST:PORT", action="append", default=[],
        help="the human monitor")  # fmt: skip
    add("--qmp", metavar="unix:PATH|HOST:PORT", action="append", default=[],
        help="a control socket that speaks QMP")  # fmt: skip
    add("-S", "--paused", action="store_true", help="wait for the monitor's cont")
    add("--no-reboot", dest="reboot", action="store_false", help="a reset ends the machine")
    add("--no-shutdown", dest="stay", action="store_true",
        help="stop, and stay, when the guest turns itself off")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    monitors = [place for place in args.monitor if place != "none"]
    if args.nographic and not args.serial:
        args.serial = ["none"] if "stdio" in monitors else ["mon:stdio"]
    serial = args.serial or ["none"]
    on_terminal = [place for place in serial if place in ON_TERMINAL]
    displays = _displays(args, taken=bool(on_terminal) or "stdio" in monitors)
    in_terminal = [*(["--display text"] if "text" in displays else []),
                   *(["--monitor stdio"] * monitors.count("stdio")),
                   *(f"--serial {place}" for place in on_terminal)]  # fmt: skip
    if len(in_terminal) > 1:
        raise InvalidRequestError(f"{' and '.join(in_terminal)}: one of them can have the terminal")
    machine = _options.make_machine(
        args, serial_ports=len(serial), reboot=args.reboot, stay=args.stay
    )
    with ExitStack() as stack:
        stack.enter_context(machine)
        _run(machine, args, Ends(displays, serial, monitors), stack)
        if args.record is not None:
            machine.stop()
            machine.save_journal(args.record)
    if machine.error:
        complain(machine.error)
        return 1
    return machine.exit_status or 0


class Ends(NamedTuple):
    """Where screen, serial lines and monitors lead."""

    displays: list[str]
    serial: list[str]
    monitors: list[str]


def _displays(args: argparse.Namespace, *, taken: bool) -> list[str]:
    """The displays asked for; by default the terminal, where it is not ``taken``."""
    asked = [*args.display, *(f"vnc={place}" if place != "none" else place for place in args.vnc)]
    asked = ["text" if display == "curses" else display for display in asked]
    for display in asked:
        if display.partition("=")[0] not in DISPLAYS:
            raise InvalidRequestError(f"display {display!r}: one of {', '.join(DISPLAYS)}")
    if args.vga == "none" and set(asked) - {"none"}:
        raise InvalidRequestError("a machine without a video card (--vga none) has no display")
    if asked or args.vga == "none" or args.nographic:
        return [display for display in asked if display != "none"]
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return ["text"] if terminal and not taken else []


def _run(machine: Machine, args: argparse.Namespace, ends: Ends, stack: ExitStack) -> None:
    from vdisk.cli._vm._serial import Lines, talk, write_to_file

    lines = Lines(machine, ends.serial)
    stack.callback(lines.close)
    if args.debugcon is not None:
        stack.callback(write_to_file(machine.debug_console, args.debugcon))
    served = [display for display in ends.displays if display != "text"]
    sockets = [place for place in ends.monitors if place != "stdio"]
    if served or args.qmp or sockets or args.password_file is not None:
        from vdisk.cli._vm._servers import Servers

        servers = Servers(machine, served, args.qmp, sockets, args.password_file)
        stack.callback(servers.close)
    if args.loadvm is not None:
        machine.load(args.loadvm)
    if lines.stdio is not None:
        talk(machine, lines.stdio, start=not args.paused)
        return
    if not args.paused:
        machine.start()
    if "text" in ends.displays:
        _show_text(machine)
    elif "stdio" in ends.monitors:
        _prompt(machine)
    else:
        machine.wait()


def _show_text(machine: Machine) -> None:
    """The screen in the terminal, until the machine or the user ends it."""
    import threading

    from vdisk.vm.display.text import TextDisplay

    display = TextDisplay(machine.control)

    def end() -> None:
        machine.wait()
        display.close()

    threading.Thread(target=end, name="vdisk-display", daemon=True).start()
    try:
        display.run()
    finally:
        machine.stop()


def _prompt(machine: Machine) -> None:
    """The human monitor; at the end of its input the machine goes on."""
    import threading

    from vdisk.vm.monitor.prompt import Prompt

    prompt = Prompt(machine.control)

    def end() -> None:
        machine.wait()
        prompt.stop()

    threading.Thread(target=end, name="vdisk-monitor", daemon=True).start()
    prompt.run()
    machine.wait()
