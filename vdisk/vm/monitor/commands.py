"""The commands of QMP: what each takes (names and types of QEMU's qapi/*.json) and does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import from_os_error
from vdisk.vm.display.image import save_picture
from vdisk.vm.display.keys import BY_NUMBER, find_qcode
from vdisk.vm.monitor import block_jobs, blocks, hmp
from vdisk.vm.monitor.control import RunState
from vdisk.vm.monitor.input import HOLD_MILLISECONDS, press_together
from vdisk.vm.monitor.qmp_session import version
from vdisk.vm.monitor.schema import Command, QmpError, check_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.monitor.control import MachineControl

    Arguments = dict[str, Any]

MOST_MEMORY = 1 << 30
"""Bytes of one ``pmemsave``."""
MEMORY_PIECE = 1 << 20
_MOST_EVENTS = 256
_BUTTONS = {"left": 1, "right": 2, "middle": 4}
_WHEEL = {"wheel-up": -1, "wheel-down": 1}
_LARGEST_MOTION = 1 << 15


# -- what is it like -----------------------------------------------------------------------------


def _query_status(machine: MachineControl, _arguments: Arguments) -> Any:
    state = machine.status()
    return {
        "status": state.value,
        "running": state is RunState.RUNNING,
        "singlestep": False,
    }


def _query_commands(_machine: MachineControl, _arguments: Arguments) -> Any:
    return [{"name": name} for name in COMMANDS]


def _query_name(machine: MachineControl, _arguments: Arguments) -> Any:
    return {"name": machine.name} if machine.name else {}


def _query_kvm(machine: MachineControl, _arguments: Arguments) -> Any:
    enabled = machine.accelerator() == "kvm"
    return {"enabled": enabled, "present": enabled}


def _query_cpus(machine: MachineControl, _arguments: Arguments) -> Any:
    return [
        {
            "cpu-index": index,
            "qom-path": f"/machine/cpu[{index}]",
            "thread-id": 0,
            "target": "x86_64",
            "props": {"core-id": index, "thread-id": 0, "socket-id": 0},
        }
        for index in range(machine.cpus())
    ]


def _query_block(machine: MachineControl, _arguments: Arguments) -> Any:
    return [blocks.block_info(drive) for drive in machine.drives()]


def _query_blockstats(machine: MachineControl, _arguments: Arguments) -> Any:
    return [blocks.block_stats(drive) for drive in machine.drives()]


def _query_nodes(machine: MachineControl, _arguments: Arguments) -> Any:
    return [blocks.inserted(drive.medium) for drive in machine.drives() if drive.medium is not None]


def _query_pci(machine: MachineControl, _arguments: Arguments) -> Any:
    devices = []
    for one in machine.pci():
        regions = [
            {
                "bar": index,
                "type": "io" if kind == "I/O" else "memory",
                "address": -1 if address is None else address,
                "size": size,
            }
            for index, kind, address, size in one.ranges
        ]
        device = {
            "bus": 0,
            "slot": one.slot,
            "function": one.function,
            "class_info": {"class": one.class_code >> 8},
            "id": {"device": one.device, "vendor": one.vendor},
            "qdev_id": one.name,
            "regions": regions,
        }
        devices.append(device if one.irq is None else {**device, "irq": one.irq})
    return [{"bus": 0, "devices": devices}]


def _query_memory(machine: MachineControl, _arguments: Arguments) -> Any:
    return {"base-memory": machine.memory_size(), "plugged-memory": 0}


def _query_mice(_machine: MachineControl, _arguments: Arguments) -> Any:
    return [{"name": "PS/2 Mouse", "index": 0, "current": True, "absolute": False}]


# -- running -------------------------------------------------------------------------------------


def _plain(act: Callable[[MachineControl], None]) -> Command:
    """A command without arguments or answer."""

    def run(machine: MachineControl, _arguments: Arguments) -> Any:
        act(machine)
        return {}

    return Command(run)


def _human(machine: MachineControl, arguments: Arguments) -> Any:
    cpu = arguments.get("cpu-index", 0)
    if not 0 <= cpu < machine.cpus():
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    said = hmp.execute(machine, arguments["command-line"], cpu)
    return said.replace("\n", "\r\n")


# -- screen and keyboard -------------------------------------------------------------------------


def _screendump(machine: MachineControl, arguments: Arguments) -> Any:
    save_picture(machine.screen.frame(), arguments["filename"], arguments.get("format", "ppm"))
    return {}


def _key(value: Any, name: str) -> str:
    """A KeyValue."""
    check_arguments(_KEY_VALUE, value)
    data, qcode = value["data"], None
    if value["type"] == "number":
        if not isinstance(data, int) or isinstance(data, bool):
            raise QmpError(f"Invalid parameter type for '{name}.data', expected: integer")
        qcode = BY_NUMBER.get(data)
    elif not isinstance(data, str):
        raise QmpError(f"Invalid parameter type for '{name}.data', expected: string")
    else:
        qcode = find_qcode(data)
    if qcode is None:
        raise QmpError(f"Parameter 'data' does not accept value '{data}'")
    return qcode


def _send_key(machine: MachineControl, arguments: Arguments) -> Any:
    keys = [_key(value, f"keys[{index}]") for index, value in enumerate(arguments["keys"])]
    press_together(machine.input, keys, arguments.get("hold-time", HOLD_MILLISECONDS))
    return {}


def _input_event(value: Any, name: str) -> tuple[Any, ...]:
    """An InputEvent, as ("key", qcode, down), ("btn", name, down) or ("rel", axis, value)."""
    check_arguments(_EVENT, value)
    data = value["data"]
    if value["type"] == "key":
        check_arguments(_KEY_EVENT, data)
        return "key", _key(data["key"], f"{name}.key"), data["down"]
    if value["type"] == "btn":
        check_arguments(_BUTTON_EVENT, data)
        return "btn", data["button"], data["down"]
    check_arguments(_MOVE_EVENT, data)
    if abs(data["value"]) > _LARGEST_MOTION:
        raise QmpError(f"Parameter '{name}.value' is out of range")
    return "rel", data["axis"], data["value"]


def _input_send_event(machine: MachineControl, arguments: Arguments) -> Any:
    events = arguments["events"]
    if len(events) > _MOST_EVENTS:
        raise QmpError(f"at most {_MOST_EVENTS} events are sent together")
    parsed = [_input_event(value, f"events[{index}]") for index, value in enumerate(events)]
    dx = sum(value for kind, axis, value in parsed if kind == "rel" and axis == "x")
    dy = sum(value for kind, axis, value in parsed if kind == "rel" and axis == "y")
    if dx or dy:
        machine.input.move_pointer(dx, dy)
    buttons: int | None = None
    for kind, name, value in parsed:
        if kind == "key":
            machine.input.key(name, value)
        elif kind == "btn" and name in _WHEEL:
            if value:
                machine.input.move_pointer(0, 0, _WHEEL[name])
        elif kind == "btn":
            buttons = (buttons or 0) | _BUTTONS[name] if value else (buttons or 0)
    if buttons is not None:
        machine.input.set_buttons(buttons)
    return {}


# -- disks ---------------------------------------------------------------------------------------


def _eject(machine: MachineControl, arguments: Arguments) -> Any:
    drive = blocks.chosen_drive(machine, arguments)
    if not drive.removable:
        raise QmpError(f"Device '{drive.device}' is not removable")
    machine.eject(drive.device, force=arguments.get("force", False))
    return {}


def _open_tray(machine: MachineControl, arguments: Arguments) -> Any:
    drive = blocks.chosen_drive(machine, arguments)
    machine.open_tray(drive.device, force=arguments.get("force", False))
    return {}


def _close_tray(machine: MachineControl, arguments: Arguments) -> Any:
    machine.close_tray(blocks.chosen_drive(machine, arguments).device)
    return {}


def _change_medium(machine: MachineControl, arguments: Arguments) -> Any:
    drive = blocks.chosen_drive(machine, arguments)
    mode = arguments.get("read-only-mode", "retain")
    before = drive.medium.read_only if drive.medium is not None else True
    read_only = before if mode == "retain" else mode == "read-only"
    if drive.removable:
        machine.open_tray(drive.device, force=arguments.get("force", False))
    machine.insert(
        drive.device,
        arguments["filename"],
        format=arguments.get("format"),
        read_only=read_only,
    )
    return {}


def _device_or_node(machine: MachineControl, arguments: Arguments) -> str:
    """The drive that ``device`` or ``node-name`` means."""
    names = [arguments[key] for key in ("device", "node-name") if key in arguments]
    if len(names) != 1:
        raise QmpError("Need exactly one of 'device' and 'node-name'")
    return blocks.device_or_node(
        machine, arguments.get("device", ""), arguments.get("node-name", "")
    )


def _resize_disk(machine: MachineControl, arguments: Arguments) -> Any:
    if arguments["size"] < 0:
        raise QmpError("Parameter 'size' expects a >0 size")
    machine.resize_disk(_device_or_node(machine, arguments), arguments["size"])
    return {}


def _snapshot_disk(machine: MachineControl, arguments: Arguments) -> Any:
    machine.snapshot_disk(
        _device_or_node(machine, arguments),
        arguments["snapshot-file"],
        format=arguments.get("format", "qcow2"),
        mode=arguments.get("mode", "absolute-paths"),
    )
    return {}


def _save_physical(machine: MachineControl, arguments: Arguments) -> Any:
    return _save_memory(machine.read_memory, arguments)


def _save_virtual(machine: MachineControl, arguments: Arguments) -> Any:
    cpu = arguments.get("cpu-index", 0)
    if not 0 <= cpu < machine.cpus():
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    return _save_memory(lambda start, length: machine.read_virtual(cpu, start, length), arguments)


def _save_memory(read: Callable[[int, int], bytes], arguments: Arguments) -> Any:
    address, size, filename = arguments["val"], arguments["size"], arguments["filename"]
    if size < 0 or size > MOST_MEMORY or address < 0:
        raise QmpError(f"at most {MOST_MEMORY} bytes from an address on")
    try:
        with open(filename, "wb") as file:
            for start in range(address, address + size, MEMORY_PIECE):
                length = min(MEMORY_PIECE, address + size - start)
                file.write(read(start, length))
    except OSError as error:
        raise from_os_error(error, path=filename, operation="write memory") from error
    return {}


_NAMED: dict[str, Any] = {"device": str, "id": str}
_FORCE: dict[str, Any] = {"force": bool}
_KEY_VALUE = Command(_query_status, {"type": ("qcode", "number"), "data": object})
_EVENT = Command(_query_status, {"type": ("key", "btn", "rel"), "data": dict})
_KEY_EVENT = Command(_query_status, {"key": dict, "down": bool})
_BUTTON_EVENT = Command(_query_status, {"button": (*_BUTTONS, *_WHEEL), "down": bool})
_MOVE_EVENT = Command(_query_status, {"axis": ("x", "y"), "value": int})

COMMANDS: dict[str, Command] = {
    **block_jobs.COMMANDS,
    "query-version": Command(lambda _machine, _arguments: version(), out_of_band=True),
    "query-commands": Command(_query_commands, out_of_band=True),
    "query-status": Command(_query_status),
    "query-name": Command(_query_name, out_of_band=True),
    "query-kvm": Command(_query_kvm, out_of_band=True),
    "query-cpus-fast": Command(_query_cpus),
    "query-mice": Command(_query_mice),
    "query-block": Command(_query_block),
    "query-blockstats": Command(_query_blockstats, optional={"query-nodes": bool}),
    "query-named-block-nodes": Command(_query_nodes, optional={"flat": bool}),
    "query-pci": Command(_query_pci),
    "query-memory-size-summary": Command(_query_memory),
    "query-target": Command(lambda _machine, _arguments: {"arch": "x86_64"}),
    "stop": _plain(lambda machine: machine.stop()),
    "cont": _plain(lambda machine: machine.cont()),
    "quit": _plain(lambda machine: machine.quit()),
    "system_reset": _plain(lambda machine: machine.reset()),
    "system_wakeup": _plain(lambda machine: machine.wakeup()),
    "query-current-machine": Command(lambda _machine, _arguments: {"wakeup-suspend-support": True}),
    "system_powerdown": _plain(lambda machine: machine.powerdown()),
    "inject-nmi": _plain(lambda machine: machine.inject_nmi()),
    "human-monitor-command": Command(_human, {"command-line": str}, {"cpu-index": int}),
    "screendump": Command(
        _screendump, {"filename": str}, {"device": str, "head": int, "format": ("ppm", "png")}
    ),
    "send-key": Command(_send_key, {"keys": [dict]}, {"hold-time": int}),
    "input-send-event": Command(
        _input_send_event, {"events": [dict]}, {"device": str, "head": int}
    ),
    "eject": Command(_eject, optional=_NAMED | _FORCE),
    "blockdev-open-tray": Command(_open_tray, optional=_NAMED | _FORCE),
    "blockdev-close-tray": Command(_close_tray, optional=_NAMED),
    "blockdev-change-medium": Command(
        _change_medium,
        {"filename": str},
        {
            **_NAMED,
            **_FORCE,
            "format": str,
            "read-only-mode": ("retain", "read-only", "read-write"),
        },
    ),
    "blockdev-snapshot-sync": Command(
        _snapshot_disk,
        {"snapshot-file": str},
        {
            "device": str,
            "node-name": str,
            "format": str,
            "mode": ("existing", "absolute-paths"),
        },
    ),
    "block_resize": Command(_resize_disk, {"size": int}, {"device": str, "node-name": str}),
    "pmemsave": Command(_save_physical, {"val": int, "size": int, "filename": str}),
    "memsave": Command(
        _save_virtual, {"val": int, "size": int, "filename": str}, {"cpu-index": int}
    ),
}
"""Every command but ``qmp_capabilities``."""
