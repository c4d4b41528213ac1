"""Drives as QMP and the human monitor show them (qapi/block-core.json: BlockInfo, BlockStats)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vdisk.vm.monitor.schema import QmpError

if TYPE_CHECKING:
    from vdisk.vm.monitor.control import Drive, MachineControl, Medium

_TIMES = ("rd", "wr", "flush", "unmap")


def find_drive(machine: MachineControl, name: str) -> Drive:
    """The drive whose name or device is ``name``.  Raises QmpError (DeviceNotFound)."""
    for drive in machine.drives():
        if name in (drive.device, drive.id):
            return drive
    raise QmpError(f"Device '{name}' not found", "DeviceNotFound")


def chosen_drive(machine: MachineControl, arguments: dict[str, Any]) -> Drive:
    """The drive that ``device`` or ``id`` names, exactly one of which is there."""
    names = [arguments[key] for key in ("device", "id") if key in arguments]
    if len(names) != 1:
        raise QmpError("Need exactly one of 'device' and 'id'")
    return find_drive(machine, names[0])


def device_or_node(machine: MachineControl, device: str, node: str) -> str:
    """The drive of a name, or that of the image in it."""
    for drive in machine.drives():
        names = {drive.device, drive.id} - {""}
        if device in names or (drive.medium is not None and node == drive.medium.node_name != ""):
            return drive.device
    raise QmpError(f"Cannot find device='{device}' nor node-name='{node}'")


def _image(medium: Medium, backing: list[str]) -> dict[str, Any]:
    image: dict[str, Any] = {
        "filename": medium.filename,
        "format": medium.format,
        "virtual-size": medium.size,
        "dirty-flag": False,
    }
    if backing:
        image["backing-filename"] = backing[0]
    return image


def inserted(medium: Medium) -> dict[str, Any]:
    """BlockDeviceInfo."""
    backing = list(medium.backing)
    limits = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
    info: dict[str, Any] = {
        "file": medium.filename,
        "drv": medium.format,
        "ro": medium.read_only,
        "encrypted": False,
        "backing_file_depth": len(backing),
        "detect_zeroes": "off",
        "write_threshold": 0,
        "cache": {"writeback": medium.writeback, "direct": False, "no-flush": False},
        "image": _image(medium, backing),
        **dict.fromkeys(limits, 0),
    }
    if backing:
        info["backing_file"] = backing[0]
    if medium.node_name:
        info["node-name"] = medium.node_name
    return info


def block_info(drive: Drive) -> dict[str, Any]:
    """BlockInfo."""
    info: dict[str, Any] = {
        "device": drive.device,
        "type": "unknown",
        "removable": drive.removable,
        "locked": drive.locked,
        "io-status": drive.io_status,
    }
    if drive.id:
        info["qdev"] = drive.id
    if drive.removable:
        info["tray_open"] = drive.tray_open
    if drive.medium is not None:
        info["inserted"] = inserted(drive.medium)
    return info


def block_stats(drive: Drive) -> dict[str, Any]:
    """BlockStats."""
    stats: dict[str, Any] = asdict(drive.statistics)
    stats |= {f"{kind}_merged": 0 for kind in ("rd", "wr", "unmap")}
    stats |= {f"invalid_{kind}_operations": 0 for kind in _TIMES}
    stats |= {
        "wr_highest_offset": 0,
        "account_invalid": False,
        "account_failed": True,
        "timed_stats": [],
    }
    result: dict[str, Any] = {"device": drive.device, "stats": stats}
    if drive.id:
        result["qdev"] = drive.id
    if drive.medium is not None and drive.medium.node_name:
        result["node-name"] = drive.medium.node_name
    return result


def describe(drive: Drive) -> str:
    """A drive in ``info block``."""
    medium = drive.medium
    lines = [f"{drive.device}: [not inserted]"]
    if medium is not None:
        read_only = ", read-only" if medium.read_only else ""
        node = f" ({medium.node_name})" if medium.node_name else ""
        lines = [f"{drive.device}{node}: {medium.filename} ({medium.format}{read_only})"]
    if drive.id:
        lines.append(f"    Attached to:      {drive.id}")
    if drive.removable:
        locked, tray = "" if drive.locked else "not ", "open" if drive.tray_open else "closed"
        lines.append(f"    Removable device: {locked}locked, tray {tray}")
    if drive.io_status != "ok":
        lines.append(f"    I/O status:       {drive.io_status}")
    if medium is not None:
        cache = "writeback" if medium.writeback else "writethrough"
        lines.append(f"    Cache mode:       {cache}")
        if medium.backing:
            depth = len(medium.backing)
            lines.append(f"    Backing file:     {medium.backing[0]} (chain depth: {depth})")
    return "\n".join(lines) + "\n"


def describe_statistics(drive: Drive) -> str:
    """A drive in ``info blockstats``."""
    numbers = asdict(drive.statistics)
    names = [
        *("rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "flush_operations"),
        *("wr_total_time_ns", "rd_total_time_ns", "flush_total_time_ns"),
    ]
    return f"{drive.device}: " + " ".join(f"{name}={numbers[name]}" for name in names) + "\n"
