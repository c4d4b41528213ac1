"""QEMU's longer way of saying what is in a machine: ``-device``, with ``-drive if=none`` and
``-netdev`` for what is behind it.

    -drive file=disk.qcow2,if=none,id=d -device virtio-blk-pci,drive=d
    -netdev user,id=n,hostfwd=tcp::2222-:22 -device virtio-net-pci,netdev=n,mac=52:54:00:00:00:01
    -device virtio-rng-pci

Each becomes what ``--disk``, ``--net`` and ``--rng`` say in a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from vdisk.errors import InvalidRequestError
from vdisk.options import OptionBag, escape_commas, parse_keyval, split_commas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm import DiskSpec
    from vdisk.vm.machine import NetworkSpec

Found = TypeVar("Found")

OF_DISKS = ("serial", "logical_block_size", "physical_block_size", "num-queues")
"""Words of a disk's ``-device`` that are words of ``--disk`` too."""


class Devices(NamedTuple):
    """``disks``: of ``-drive``; ``network``: the card and what is behind it."""

    disks: list[DiskSpec]
    network: NetworkSpec
    rng: bool


def parse_devices(
    drives: Sequence[str], devices: Sequence[str], netdevs: Sequence[str], nic: str
) -> Devices:
    """What the options of these names come to; raises :class:`InvalidRequestError`."""
    from vdisk.vm.machine import disk_of_words, parse_network

    words = [parse_keyval(text, implied_key="file") for text in drives]
    waiting = {_id(drive): drive for drive in words if drive.get("if") == "none"}
    networks = dict(_netdev(text) for text in netdevs)
    network = parse_network(nic)
    rng = False
    for text in devices:
        bag = OptionBag(parse_keyval(text, implied_key="driver"), f"-device {text!r}")
        driver = (bag.string("driver") or "").removesuffix("-pci")
        bag.string("id")
        if driver in {"virtio-blk", "ide-hd", "ide-cd"}:
            _plug_drive(driver, bag, waiting)
        elif driver == "virtio-net":
            if network.kind != "none":
                raise InvalidRequestError("a machine has one network card")
            network = _plug_network(networks, bag)
        elif driver == "virtio-rng":
            rng = True
        elif driver == "isa-debug-exit":
            _check_debug_exit(bag)
        else:
            raise InvalidRequestError(
                f"there is no device {driver!r} here: virtio-blk-pci, ide-hd, ide-cd, "
                "virtio-net-pci, virtio-rng-pci, isa-debug-exit"
            )
        bag.finish()
    for name in (*waiting, *networks):
        raise InvalidRequestError(f"no -device uses {name!r}")
    return Devices([disk_of_words(drive) for drive in words], network, rng)


def _id(drive: dict[str, str]) -> str:
    if "id" not in drive:
        raise InvalidRequestError("a drive with if=none needs an id, which a -device names")
    return drive["id"]


def _plug_drive(driver: str, bag: OptionBag, waiting: dict[str, dict[str, str]]) -> None:
    """Let a drive be behind this device: its words become those of ``--disk``."""
    drive = _pop(waiting, bag, "drive", "-drive with if=none")
    drive["if"] = "virtio" if driver == "virtio-blk" else "ide"
    if driver == "ide-cd":
        drive["media"] = "cdrom"
    bus, unit = bag.string("bus"), bag.size("unit")
    if driver != "virtio-blk" and bus is not None:
        if bus not in {"ide.0", "ide.1"} or unit not in {None, 0, 1}:
            raise InvalidRequestError(f"{bus}, unit {unit}: IDE is ide.0 and ide.1, units 0 and 1")
        drive["index"] = str(2 * int(bus[-1]) + (unit or 0))
    for name in OF_DISKS:
        value = bag.string(name)
        if value is not None:
            drive[name] = value


def _pop(found: dict[str, Found], bag: OptionBag, key: str, what: str) -> Found:
    name = bag.string(key) or ""
    if name not in found:
        raise InvalidRequestError(f"{bag.owner}: {key}={name}: there is no such {what}")
    return found.pop(name)


def _check_debug_exit(bag: OptionBag) -> None:
    port = (bag.string("iobase") or "").lower()
    bag.string("iosize")
    if port not in {"0xf4", "244"}:
        raise InvalidRequestError("isa-debug-exit is at port 0xf4 here: iobase=0xf4")


def _netdev(text: str) -> tuple[str, NetworkSpec]:
    """``user,id=…,hostfwd=…`` or ``tap,id=…,…``: its id, and what it is."""
    from vdisk.vm.machine import parse_network

    words = split_commas(text)
    ids = [word.removeprefix("id=") for word in words if word.startswith("id=")]
    rest = [word for word in words if not word.startswith("id=")]
    if len(ids) != 1 or not rest or rest[0] not in {"user", "tap"}:
        raise InvalidRequestError(
            f"-netdev {text!r}: user,id=NAME[,hostfwd=…] or tap,id=NAME[,ifname=…]"
        )
    return ids[0], parse_network(",".join(map(escape_commas, rest)))


def _plug_network(networks: dict[str, NetworkSpec], bag: OptionBag) -> NetworkSpec:
    """The network behind this card."""
    from vdisk.vm.machine import parse_mac

    network = _pop(networks, bag, "netdev", "-netdev")
    mac = bag.string("mac")
    if mac is not None:
        network.mac = parse_mac(mac)
    return network
