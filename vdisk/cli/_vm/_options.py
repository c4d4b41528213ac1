"""The options that say what a machine is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError
from vdisk.options import parse_keyval
from vdisk.units import parse_size

if TYPE_CHECKING:
    import argparse

    from vdisk.cli.options import Parser
    from vdisk.vm import DiskSpec

MIB = 1 << 20


def add_hardware(parser: Parser) -> None:
    """Memory, processors, disks, network."""
    group = parser.add_argument_group("hardware")
    add = group.add_argument
    add("-m", "--memory", metavar="SIZE", default="512M",
        help="RAM, 512M by default; a number alone is MiB")  # fmt: skip
    add("--cpus", "--smp", metavar="N", type=int, default=1, help="processors")
    add("--disk", metavar="FILE[,OPTION…]", action="append", default=[],
        help="if=ide|virtio, snapshot=on, readonly=on, format=, cache=, serial=, index=, "
        "werror=, rerror=, throttling.iops-total= …; may be repeated")  # fmt: skip
    add("--cdrom", metavar="FILE", action="append", default=[],
        help="an image in a CD-ROM drive; 'none': an empty drive")  # fmt: skip
    add("--snapshot", action="store_true", help="writes to all disks are thrown away at the end")
    add("--vga", choices=("std", "none"), default="std", help="video card")
    add("--vga-memory", metavar="SIZE", default="16M", help="video memory, 1M to 32M")
    add("--net", metavar="none|user[,hostfwd=…]", default="none",
        help="network card; user: this process speaks for the guest, "
        "hostfwd=tcp:[HOST]:PORT-[GUEST]:PORT leads connections to it")  # fmt: skip
    add("--rng", action="store_true", help="a virtio source of randomness")
    add("--no-apic", dest="apic", action="store_false", help="the 8259 interrupt controllers only")
    add("--accel", choices=("auto", "llvm", "kvm", "interp"), default="auto",
        help="who executes: auto takes kvm where it really runs a guest")  # fmt: skip


def add_booting(parser: Parser) -> None:
    """Firmware, kernel, time."""
    group = parser.add_argument_group("booting")
    add = group.add_argument
    add("--bios", metavar="FILE", help="firmware instead of the built-in BIOS (SeaBIOS, say)")
    add("--boot", metavar="ORDER[,OPTION…]", default="cd",
        help="c hard disk, d CD-ROM; 'cd' by default, and then the others (strict=on: only "
        "these); once=ORDER, menu=on, splash-time=MS, reboot-timeout=MS, as QEMU's")  # fmt: skip
    add("--kernel", metavar="FILE", help="Linux (bzImage) or a Multiboot kernel, to boot directly")
    add("--initrd", metavar="FILE", help="its initial RAM disk; Multiboot: FILE ARGUMENTS,FILE…")
    add("--append", metavar="TEXT", default="", help="its command line")
    add("--kernel-bits", type=int, choices=(16, 32, 64), help="in which mode Linux is entered")
    add("--rtc", metavar="SECONDS", type=int, help="the time of day, in seconds since 1970")
    add("--loadvm", metavar="TAG", help="go on from a machine saved in the disks")
    add("--name", default="vdisk", help="what monitors and displays call the machine")


def add_determinism(parser: Parser) -> None:
    """Runs that repeat."""
    group = parser.add_argument_group("deterministic runs")
    add = group.add_argument
    add("--deterministic", action="store_true",
        help="virtual time: the same run happens each time")  # fmt: skip
    add("--record", metavar="FILE", help="write what comes from outside (implies it)")
    add("--replay", metavar="FILE", help="repeat a run that was recorded")


def machine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of :class:`vdisk.vm.Machine`."""
    from vdisk.vm.machine import parse_disk

    disks = [parse_disk(text) for text in [*args.images, *args.disk]]
    if args.snapshot:
        for disk in disks:
            disk.snapshot = disk.media != "cdrom"
    network, forwards = _network(args.net)
    return {
        "memory": _memory(args.memory),
        "cpus": args.cpus,
        "disks": disks,
        "cdroms": [_cdrom(text) for text in args.cdrom],
        "accel": args.accel,
        "bios": args.bios,
        "boot": args.boot,
        "kernel": args.kernel,
        "initrd": args.initrd,
        "append": args.append,
        "kernel_bits": args.kernel_bits,
        "vga": args.vga,
        "vga_memory": parse_size(args.vga_memory, what="--vga-memory"),
        "apic": args.apic,
        "rng": args.rng,
        "network": network,
        "forwards": forwards,
        "epoch": args.rtc,
        "deterministic": args.deterministic or args.record is not None,
        "replay": args.replay,
        "name": args.name,
    }


def _memory(text: str) -> int:
    """QEMU's -m: a number alone is MiB."""
    return int(text) * MIB if text.isdigit() else parse_size(text, what="--memory")


def _cdrom(text: str) -> DiskSpec:
    from vdisk.vm.machine import DiskSpec, parse_disk

    return DiskSpec(media="cdrom") if text == "none" else parse_disk(text, media="cdrom")


def _network(text: str) -> tuple[str, list[str]]:
    """``user,hostfwd=…,hostfwd=…``: the kind, and each forwarded port."""
    kind, *words = text.split(",")
    forwards = []
    for word in words:
        name, forward = next(iter(parse_keyval(word).items()))
        if name != "hostfwd":
            raise InvalidRequestError(f"--net {kind} has no option {name!r}")
        forwards.append(forward)
    return kind, forwards
