"""The human monitor: commands that a person types, with the names and answers of QEMU's.

:func:`execute` carries out one line and gives what is said, errors included, as
``human-monitor-command`` does; :mod:`vdisk.vm.monitor.prompt` asks a person for lines.
"""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from vdisk import __version__
from vdisk.errors import InvalidRequestError, NotFoundError, VdiskError
from vdisk.units import format_size, parse_size
from vdisk.vm.display.image import save_picture
from vdisk.vm.monitor import block_jobs, blocks, inspecting
from vdisk.vm.monitor.control import RunState
from vdisk.vm.monitor.human import Context, HumanCommand, number
from vdisk.vm.monitor.input import HOLD_MILLISECONDS, press_together, qcode_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vdisk.vm.monitor.control import MachineControl
    from vdisk.vm.monitor.human import Run

_LONGEST_LINE = 4096


class Session:
    """A person's lines, one after the other: a processor that was chosen stays."""

    def __init__(self, machine: MachineControl) -> None:
        self._context = Context(machine)

    def execute(self, line: str) -> str:
        """What a line does and says."""
        return _execute(self._context, line)


def execute(machine: MachineControl, line: str, cpu: int = 0) -> str:
    """What one line does and says."""
    return _execute(Context(machine, cpu), line)


def _execute(context: Context, line: str) -> str:
    try:
        words = _split(line)
        if not words:
            return ""
        name, command = _find(words)
        if command is None:
            return f"unknown command: '{name}'\n"
        rest = words[len(name.split()) :]
        return command.run(context, command.check(words[0], rest))
    except InvalidRequestError as error:
        return f"{error}\n"
    except VdiskError as error:
        return f"Error: {error}\n"


def _split(line: str) -> list[str]:
    if len(line) > _LONGEST_LINE:
        raise InvalidRequestError("the line is too long")
    try:
        return shlex.split(line)
    except ValueError as error:
        raise InvalidRequestError(f"unterminated string: {error}") from error


def _find(words: list[str]) -> tuple[str, HumanCommand | None]:
    name = ALIASES.get(words[0], words[0])
    if name == "info" and len(words) > 1:
        name = f"info {words[1]}"
        return name, INFO.get(words[1])
    return name, COMMANDS.get(name)


def completions(line: str) -> list[str]:
    """Words that may stand where ``line`` ends."""
    words = line.split(" ")
    table: Mapping[str, HumanCommand] = COMMANDS
    if len(words) > 1:
        table = {"info": INFO, "help": COMMANDS, "?": COMMANDS}.get(words[0], {})
    return [name for name in table if name.startswith(words[-1])] if len(words) < 3 else []


# -- commands ------------------------------------------------------------------------------------


def _help(_context: Context, words: Sequence[str]) -> str:
    if words and words[0] == "info":
        return "".join(command.usage(f"info {name}") for name, command in INFO.items())
    if words:
        name = ALIASES.get(words[0], words[0])
        command = COMMANDS.get(name)
        return command.usage(_with_alias(name)) if command else ""
    return "".join(command.usage(_with_alias(name)) for name, command in COMMANDS.items())


def _with_alias(name: str) -> str:
    aliases = [alias for alias, command in ALIASES.items() if command == name]
    return "|".join([name, *aliases])


def _plain(act: Callable[[MachineControl], None]) -> Run:
    def run(context: Context, _words: Sequence[str]) -> str:
        act(context.machine)
        return ""

    return run


def _tagged(act: Callable[[MachineControl, str], None]) -> Run:
    def run(context: Context, words: Sequence[str]) -> str:
        act(context.machine, words[0])
        return ""

    return run


def _save_vm(machine: MachineControl, tag: str) -> None:
    # As in QEMU: a snapshot of that name is replaced.
    if any(one.tag == tag for one in machine.vm_snapshots()):
        machine.delete_vm(tag)
    machine.save_vm(tag)


def _eject(context: Context, words: Sequence[str]) -> str:
    drive = blocks.find_drive(context.machine, words[1])
    context.machine.eject(drive.device, force=bool(words[0]))
    return ""


def _change(context: Context, words: Sequence[str]) -> str:
    force, name, filename, *rest = words
    drive = blocks.find_drive(context.machine, name)
    mode = rest[1] if len(rest) > 1 else "retain"
    if mode not in ("retain", "read-only", "read-write"):
        raise InvalidRequestError(f"invalid parameter: {mode}")
    before = drive.medium.read_only if drive.medium is not None else True
    read_only = before if mode == "retain" else mode == "read-only"
    if drive.removable:
        context.machine.open_tray(drive.device, force=bool(force))
    format = rest[0] if rest else None
    context.machine.insert(drive.device, filename, format=format, read_only=read_only)
    return ""


def _snapshot_disk(context: Context, words: Sequence[str]) -> str:
    device, filename, *rest = words
    drive = blocks.find_drive(context.machine, device)
    context.machine.snapshot_disk(drive.device, filename, format=rest[0] if rest else "qcow2")
    return ""


def _screendump(context: Context, words: Sequence[str]) -> str:
    filename, *format = words
    save_picture(context.machine.screen.frame(), filename, format[0] if format else None)
    return ""


def _send_key(context: Context, words: Sequence[str]) -> str:
    keys, *hold = words
    qcodes = [qcode_of({"<": "less"}.get(name, name)) for name in keys.split("-")]
    press_together(context.machine.input, qcodes, number(hold[0]) if hold else HOLD_MILLISECONDS)
    return ""


def _mouse_move(context: Context, words: Sequence[str]) -> str:
    context.machine.input.move_pointer(*(number(word) for word in words))
    return ""


def _mouse_button(context: Context, words: Sequence[str]) -> str:
    state = number(words[0])
    # Bit 0 left, 1 middle, 2 right here; the PS/2 protocol has left, right, middle.
    context.machine.input.set_buttons(state & 1 | (state >> 2 & 1) << 1 | (state >> 1 & 1) << 2)
    return ""


def _resize(context: Context, words: Sequence[str]) -> str:
    drive = blocks.find_drive(context.machine, words[0])
    mebibytes = words[1].isdigit()
    size = int(words[1]) << 20 if mebibytes else parse_size(words[1], what="size")
    context.machine.resize_disk(drive.device, size)
    return ""


def _commit(context: Context, words: Sequence[str]) -> str:
    machine = context.machine
    if words[0] != "all":
        machine.commit_disk(blocks.find_drive(machine, words[0]).device)
        return ""
    for drive in machine.drives():
        if drive.medium is not None and drive.medium.backing and not drive.medium.read_only:
            machine.commit_disk(drive.device)
    return ""


NETWORK = "net0"


def _forward(words: Sequence[str]) -> str:
    """A rule, behind the name of the network or alone."""
    if len(words) > 1 and words[0] != NETWORK:
        raise InvalidRequestError(f"there is no network '{words[0]}' (there is: {NETWORK})")
    return words[-1]


def _add_forward(context: Context, words: Sequence[str]) -> str:
    context.machine.add_forward(_forward(words))
    return ""


def _remove_forward(context: Context, words: Sequence[str]) -> str:
    place = _forward(words)
    try:
        context.machine.remove_forward(place)
    except NotFoundError:
        return f"host forwarding rule for {place} not found\n"
    return f"host forwarding rule for {place} removed\n"


# -- info ----------------------------------------------------------------------------------------


def _info_help(context: Context, _words: Sequence[str]) -> str:
    return _help(context, ["info"])


def _info_status(context: Context, _words: Sequence[str]) -> str:
    state = context.machine.status()
    if state is RunState.RUNNING:
        return "VM status: running\n"
    detail = "" if state is RunState.PAUSED else f" ({state.value})"
    return f"VM status: paused{detail}\n"


def _info_block(context: Context, words: Sequence[str]) -> str:
    machine = context.machine
    drives = [blocks.find_drive(machine, words[0])] if words else machine.drives()
    return "\n".join(blocks.describe(drive) for drive in drives)


def _info_blockstats(context: Context, _words: Sequence[str]) -> str:
    return "".join(blocks.describe_statistics(drive) for drive in context.machine.drives())


def _info_snapshots(context: Context, _words: Sequence[str]) -> str:
    snapshots = context.machine.vm_snapshots()
    if not snapshots:
        return "There is no snapshot available.\n"
    lines = [
        "List of snapshots present on all disks:\n",
        f"{'ID':10}{'TAG':17}{'VM SIZE':>7}{'DATE':>21}{'VM CLOCK':>13}{'ICOUNT':>11}\n",
    ]
    for one in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.date_seconds))
        seconds, thousandths = divmod(one.vm_clock_ns // 1_000_000, 1000)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        clock = f"{hours:02}:{minutes:02}:{seconds % 60:02}.{thousandths:03}"
        size = format_size(one.vm_state_size)
        lines.append(f"{one.id:10}{one.tag:16} {size:>7} {date:>20} {clock:>12}{'':>11}\n")
    return "".join(lines)


def _info_kvm(context: Context, _words: Sequence[str]) -> str:
    enabled = context.machine.accelerator() == "kvm"
    return f"kvm support: {'enabled' if enabled else 'disabled'}\n"


def _info_accelerator(context: Context, _words: Sequence[str]) -> str:
    return f"accelerator: {context.machine.accelerator()}\n"


def _say(text: str) -> Run:
    return lambda _context, _words: text


INFO: dict[str, HumanCommand] = {
    **inspecting.INFO,
    **block_jobs.INFO,
    "accelerator": HumanCommand("", "what the processors run on", _info_accelerator),
    "block": HumanCommand("[device]", "the drives and what is in them", _info_block),
    "blockstats": HumanCommand("", "what the drives have done", _info_blockstats),
    "kvm": HumanCommand("", "whether KVM is used", _info_kvm),
    "mice": HumanCommand("", "the mouse", _say("* Mouse #0: PS/2 Mouse\n")),
    "name": HumanCommand(
        "", "the machine's name", lambda context, _words: f"{context.machine.name}\n"
    ),
    "snapshots": HumanCommand("", "the saved states of the machine", _info_snapshots),
    "status": HumanCommand("", "whether the machine runs", _info_status),
    "version": HumanCommand("", "the version of vdisk", _say(f"{__version__}\n")),
}

INFO = dict(sorted(INFO.items()))

ALIASES = {"s": "stop", "c": "cont", "q": "quit", "p": "print", "?": "help"}

COMMANDS: dict[str, HumanCommand] = {
    "block_resize": HumanCommand(
        "device size", "make a disk larger or smaller; a number alone is MiB", _resize
    ),
    "commit": HumanCommand(
        "device|all", "write what an overlay holds into its backing file", _commit
    ),
    "change": HumanCommand(
        "[-f] device filename [format] [read-only-mode]",
        "put another medium into a drive (-f: even if its tray is locked)",
        _change,
    ),
    "cont": HumanCommand("", "resume emulation", _plain(lambda machine: machine.cont())),
    "delvm": HumanCommand(
        "tag", "delete a saved state", _tagged(lambda machine, tag: machine.delete_vm(tag))
    ),
    "eject": HumanCommand("[-f] device", "take a medium out (-f: by force)", _eject),
    "help": HumanCommand("[command]", "show the help", _help),
    "hostfwd_add": HumanCommand(
        "[net0] rule", "lead a port of the host to the guest: tcp::2222-:22", _add_forward
    ),
    "hostfwd_remove": HumanCommand(
        "[net0] place", "take such a port back: tcp::2222", _remove_forward
    ),
    "info": HumanCommand("[subcommand]", "show information; alone, of what", _info_help),
    "loadvm": HumanCommand(
        "tag", "go back to a saved state", _tagged(lambda machine, tag: machine.load_vm(tag))
    ),
    "mouse_button": HumanCommand(
        "state", "the buttons that are down (1: left, 2: middle, 4: right)", _mouse_button
    ),
    "mouse_move": HumanCommand("dx dy [dz]", "move the mouse, turn its wheel", _mouse_move),
    "nmi": HumanCommand(
        "", "a non-maskable interrupt to all processors", _plain(lambda one: one.inject_nmi())
    ),
    "quit": HumanCommand("", "end the machine", _plain(lambda machine: machine.quit())),
    "savevm": HumanCommand("tag", "save the machine into its disks", _tagged(_save_vm)),
    "screendump": HumanCommand(
        "filename [format]", "save the screen as a picture (png, ppm)", _screendump
    ),
    "sendkey": HumanCommand(
        "keys [hold_ms]", "press keys, such as ctrl-alt-f1, for 100 ms", _send_key
    ),
    "snapshot_blkdev": HumanCommand(
        "device new-image-file [format]", "go on in a new overlay of a disk", _snapshot_disk
    ),
    "stop": HumanCommand("", "stop emulation", _plain(lambda machine: machine.stop())),
    "system_powerdown": HumanCommand(
        "", "press the power button", _plain(lambda machine: machine.powerdown())
    ),
    "system_reset": HumanCommand("", "reset the machine", _plain(lambda one: one.reset())),
    "system_wakeup": HumanCommand(
        "", "end the guest's sleep (S3)", _plain(lambda machine: machine.wakeup())
    ),
    **inspecting.COMMANDS,
    **block_jobs.HUMAN,
}
COMMANDS = dict(sorted(COMMANDS.items()))
