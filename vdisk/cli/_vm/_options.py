"""The options that say what a machine is made of."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vdisk.cli.output import Progress
from vdisk.errors import InvalidRequestError, from_os_error
from vdisk.options import OptionBag, parse_keyval
from vdisk.units import parse_size

if TYPE_CHECKING:
    import argparse

    from vdisk.cli.options import Parser
    from vdisk.vm import DiskSpec, Machine

MIB = 1 << 20
PREPARING = "preparing the processor "
IDE_DISKS = ("hda", "hdb", "hdc", "hdd")
FLOPPIES = ("fda", "fdb")
IDE_PLACES = ("primary master", "primary slave", "secondary master", "secondary slave")


def add_hardware(parser: Parser) -> None:
    """Memory, processors, disks, network."""
    group = parser.add_argument_group("hardware")
    add = group.add_argument
    add("-m", "--memory", metavar="SIZE", default="512M",
        help="RAM, 512M by default; a number alone is MiB")  # fmt: skip
    add("--cpus", "--smp", metavar="N", default="1", help="processors")
    add("--disk", "--drive", metavar="FILE[,OPTION…]", action="append", default=[],
        help="if=ide|virtio, snapshot=on, readonly=on, format=, cache=, serial=, index=, "
        "werror=, rerror=, throttling.iops-total= …; may be repeated")  # fmt: skip
    for place, name in enumerate(IDE_DISKS):
        add(f"--{name}", metavar="FILE", help="the disk on IDE " + IDE_PLACES[place])
    for name in FLOPPIES:
        add(f"--{name}", metavar="FILE", help=f"a diskette in drive {name[-1].upper()}; 'none'")
    add("--cdrom", metavar="FILE", action="append", default=[],
        help="an image in a CD-ROM drive; 'none': an empty drive")  # fmt: skip
    add("--snapshot", action="store_true", help="writes to all disks are thrown away at the end")
    add("--vga", choices=("std", "none"), default="std", help="video card")
    add("--vga-memory", metavar="SIZE", default="16M", help="video memory, 1M to 32M")
    add("--vga-size", metavar="WIDTHxHEIGHT", default="1280x800",
        help="the monitor's favourite, which most systems choose for their graphics")  # fmt: skip
    add("--net", "--nic", metavar="none|user[,…]|tap[,…]", default="none",
        help="network card; user: this process speaks for the guest, "
        "hostfwd=tcp:[HOST]:PORT-[GUEST]:PORT leads connections to it, restrict=on lets it reach "
        "nobody, tftp=FOLDER and bootfile=NAME are what it may boot; tap: a TAP of the host, "
        "ifname=NAME or fd=NUMBER, vnet_hdr=off; both: mac=ADDRESS")  # fmt: skip
    add("--rng", action="store_true", help="a virtio source of randomness")
    add("--device", metavar="NAME,OPTION…", action="append", default=[],
        help="as QEMU's: virtio-blk-pci, ide-hd or ide-cd for a --drive with if=none, "
        "virtio-net-pci for a --netdev, virtio-rng-pci")  # fmt: skip
    add("--netdev", metavar="user|tap,id=NAME[,…]", action="append", default=[],
        help="what a --device is connected to")  # fmt: skip
    add("--no-apic", dest="apic", action="store_false", help="the 8259 interrupt controllers only")
    add("--accel", choices=("auto", "llvm", "kvm", "interp"), default="auto",
        help="who executes: auto takes kvm where it really runs a guest")  # fmt: skip
    add("--enable-kvm", dest="accel", action="store_const", const="kvm", help="as --accel kvm")


def add_booting(parser: Parser) -> None:
    """Firmware, kernel, time."""
    group = parser.add_argument_group("booting")
    add = group.add_argument
    add("--bios", metavar="FILE", help="firmware instead of the built-in BIOS (SeaBIOS, say)")
    add("--boot", metavar="ORDER[,OPTION…]", default="cd",
        help="a floppy, c hard disk, d CD-ROM; 'cd' by default, and then the others (strict=on: "
        "only these); once=ORDER, menu=on, splash-time=MS, reboot-timeout=MS: QEMU's")  # fmt: skip
    add("--kernel", metavar="FILE", help="Linux (bzImage, vmlinux) or a Multiboot kernel, to boot")
    add("--initrd", metavar="FILE", help="its initial RAM disk; Multiboot: FILE ARGUMENTS,FILE…")
    add("--append", metavar="TEXT", default="", help="its command line")
    add("--kernel-bits", type=int, choices=(16, 32, 64), help="in which mode Linux is entered")
    add("--rtc", metavar="utc|localtime|DATE|SECONDS",
        help="the time of day: utc by default; a date is 2026-01-31T12:00")  # fmt: skip
    add("--loadvm", metavar="TAG", help="go on from a machine saved in the disks")
    add("--name", default="vdisk", help="what monitors and displays call the machine")
    add("-q", "--quiet", action="store_true", help="do not show what a first run prepares")


def add_determinism(parser: Parser) -> None:
    """Runs that repeat."""
    group = parser.add_argument_group("deterministic runs")
    add = group.add_argument
    add("--deterministic", action="store_true",
        help="virtual time: the same run happens each time")  # fmt: skip
    add("--record", metavar="FILE", help="write what comes from outside (implies it)")
    add("--replay", metavar="FILE", help="repeat a run that was recorded")


def make_machine(args: argparse.Namespace, **more: Any) -> Machine:
    """The machine that was asked for; ``more`` keywords.

    What its first run prepares is shown on stderr, if somebody looks at that.
    """
    from vdisk.vm import Machine

    if args.record is not None:
        _make_journal(args.record)
    shown = sys.stderr.isatty() and not args.quiet
    with Progress(shown, PREPARING, sys.stderr) as progress:
        return Machine(**machine_options(args), **more, progress=progress)


def _make_journal(path: str) -> None:
    """Before the run: where it cannot be written then, the run would be lost."""
    try:
        open(path, "wb").close()
    except OSError as error:
        raise from_os_error(error, path=path, operation="write") from error


def machine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of :class:`vdisk.vm.Machine`."""
    from vdisk.cli._vm._devices import parse_devices
    from vdisk.vm.machine import DiskSpec

    devices = parse_devices([*args.images, *args.disk], args.device, args.netdev, args.net)
    disks = devices.disks
    for place, name in enumerate(IDE_DISKS):
        if (file := getattr(args, name)) is not None:
            disks.append(DiskSpec(file=file, index=place))
    for place, name in enumerate(FLOPPIES):
        if (file := getattr(args, name)) is not None:
            medium = None if file == "none" else file
            disks.append(DiskSpec(file=medium, interface="floppy", index=place))
    if args.snapshot:
        for disk in disks:
            disk.snapshot = disk.media != "cdrom"
    return {
        "memory": _memory(args.memory),
        "cpus": _cpus(args.cpus),
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
        "vga_size": _size(args.vga_size),
        "apic": args.apic,
        "rng": args.rng or devices.rng,
        "network": devices.network,
        "epoch": None if args.rtc is None else _time_of_day(args.rtc),
        "deterministic": args.deterministic or args.record is not None,
        "replay": args.replay,
        "name": args.name,
    }


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidRequestError(f"--vga-size {text!r}: WIDTHxHEIGHT, such as 1920x1080")
    return int(width), int(height)


def _memory(text: str) -> int:
    """QEMU's -m: a number alone is MiB."""
    return int(text) * MIB if text.isdigit() else parse_size(text, what="--memory")


def _cpus(text: str) -> int:
    """QEMU's -smp: ``[cpus=]N``, or what sockets, cores and threads come to."""
    words = OptionBag(parse_keyval(text, implied_key="cpus"), "--smp")
    product = 1
    for name in ("sockets", "dies", "cores", "threads"):
        product *= words.size(name, 1) or 1
    cpus = words.size("cpus", product) or 0
    words.size("maxcpus")
    words.finish()
    return cpus


def _time_of_day(text: str) -> int | None:
    """QEMU's -rtc: ``[base=]utc|localtime|DATE``; seconds since 1970, None: the host's."""
    words = OptionBag(parse_keyval(text, implied_key="base"), "--rtc")
    base = words.string("base", "utc") or ""
    words.choice("clock", ("host", "rt", "vm"), "host")
    words.finish()
    if base == "utc":
        return None
    if base.isascii() and base.isdigit():
        return int(base)
    from datetime import UTC, datetime

    now = datetime.now()
    try:
        chosen = now if base == "localtime" else datetime.fromisoformat(base)
    except ValueError:
        raise InvalidRequestError(
            f"--rtc {base!r}: utc, localtime, seconds since 1970, or 2026-01-31T12:00:00"
        ) from None
    return int(chosen.replace(tzinfo=UTC).timestamp())


def _cdrom(text: str) -> DiskSpec:
    from vdisk.vm.machine import DiskSpec, parse_disk

    return DiskSpec(media="cdrom") if text == "none" else parse_disk(text, media="cdrom")
