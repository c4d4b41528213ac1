"""Make vdisk/vm/cpu/common.txt and kernels-*.txt.zst: what guests have in common, from their boots.

    python bench/common_code.py [--traces FOLDER] [GUEST…]

Boots each guest with nothing known, and notes what is learned of instructions, in that order.  Of
all instructions that are lowered to the same shapes, the first one is kept, with every variant
that some guest has of them, and which of these two kernels execute most; and beside that, all that
these execute, one of 64 bits and one of 32.  Traces stay in FOLDER: a guest that has one is not
booted again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any

import iced_x86 as iced
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.tools import bootable, guests
from tests.tools.debian_disk import debian_disk
from vdisk.vm import Machine
from vdisk.vm.accel import hotspots, llvm
from vdisk.vm.cpu import arena, common, known
from vdisk.vm.cpu.codegen import NativeCode
from vdisk.vm.cpu.common import Common
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.orders import decoder
from vdisk.vm.cpu.translate import variant_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MIB = 1 << 20
PATIENCE = 900
SEABIOS = "/usr/share/seabios/bios.bin"
PICTURES = 60
"""Seconds: what shows a picture and waits has done so by then."""
SHELL_WORK = (
    "ls -lR /sys/class | md5sum; dd if=/dev/urandom bs=1k count=200 | gzip | gunzip | sha256sum; "
    "seq 1 2000 | sort -r | awk '{n += $1 / 3} END {print sqrt(n)}'; ps; df; uname -a"
)
DEBIAN_WORK = (
    "find /usr -name '*a*' | sort | gzip -9 | sha256sum; ps aux; df -h; date; "
    "dpkg -l | awk '{n += $1} END {print n / 3}'; od -tf8 /bin/ls | tail; "
    "perl -e 'printf \"%.9g\", sqrt(2) * exp(1.5) + sin(3)'"
)
HEADER = """\
# Instructions that guests have in common: vdisk/vm/cpu/common.py says what a line means.
# Made by bench/common_code.py; boots of {guests}.
"""

KERNEL, KERNEL_32 = "Debian's amd64 kernel", "its 686-pae kernel"
"""What kernels-64.txt.zst and kernels-32.txt.zst are made from; bench/boot.py boots others, to
which they are of use as they are to all of that family."""
MOST = 0.95
"""Of a kernel's time, the part of it that goes by in the handlers that are marked."""
SPAN = Struct("<4I")
SMALLEST = 22
"""A level of zstd."""
Variant = tuple[Mode, bytes, int]
"""Mode, bytes of an instruction, and which of its variants."""


def linux(flavour: guests.Flavour) -> Callable[[Path], Iterator[Machine]]:
    @contextmanager
    def boot(_: Path) -> Iterator[Machine]:
        kernel, initrd = guests.guest(flavour)
        machine = Machine(memory=256 * MIB, accel="llvm", kernel=kernel, initrd=initrd,
                          append=guests.APPEND)  # fmt: skip
        with machine:
            machine.start()
            guests.Shell(machine, PATIENCE).start(PATIENCE).run(SHELL_WORK)
            yield machine

    return boot


@contextmanager
def debian(_: Path) -> Iterator[Machine]:
    """The installed system, to its login and a little further."""
    disk = f"{debian_disk()},if=virtio,snapshot=on"
    with Machine(memory=512 * MIB, accel="llvm", disks=[disk]) as machine:
        machine.start()
        guests.Shell(machine, PATIENCE).log_in(PATIENCE).run(DEBIAN_WORK)
        yield machine


def picture(make: Callable[[Path], Path], **options: Any) -> Callable[[Path], Iterator[Machine]]:
    """A boot loader's menu, or whatever else is on a disk and waits."""

    @contextmanager
    def boot(folder: Path) -> Iterator[Machine]:
        image = make(folder)
        media = {"cdroms": [str(image)]} if image.suffix == ".iso" else {
            "disks": [f"{image},format=raw,snapshot=on"]
        }  # fmt: skip
        with Machine(memory=64 * MIB, accel="llvm", **media, **options) as machine:
            machine.start()
            time.sleep(PICTURES)
            yield machine

    return boot


GUESTS = {
    KERNEL: linux(guests.GENERIC),
    "its cloud kernel": linux(guests.CLOUD),
    "its 686 kernel": linux(guests.I686),
    "Debian 12": debian,
    "GRUB": picture(lambda folder: bootable.grub_disk(folder, bootable.GRUB_CONFIG)),
    "GRUB in graphics": picture(
        lambda folder: bootable.grub_rescue(folder, bootable.GRUB_GRAPHICS + bootable.GRUB_CONFIG)
    ),
    "syslinux": picture(bootable.syslinux_disk),
    "memtest86+": picture(bootable.memtest_cdrom),
    "SeaBIOS": picture(bootable.syslinux_disk, bios=SEABIOS),
    KERNEL_32: linux(guests.PAE),
}


def trace(name: str) -> list[Variant]:
    """Boot a guest; what was learned for it."""
    native = NativeCode(None)
    llvm.native_code = lambda *_: native
    with (
        tempfile.TemporaryDirectory(prefix="vdisk-guest-") as folder,
        GUESTS[name](Path(folder)) as machine,
    ):
        translator = machine.accelerator.translator
        with machine.accelerator.lock:
            return [
                (translator.modes[mode], code, key)
                for code, mode, key in learned(translator.arena.known)
                if not translator.modes[mode].careful
            ]


def learned(table: known.Instructions) -> Iterator[tuple[bytes, int, int]]:
    """Bytes, number of the mode and variant, in the order in which variants were added."""
    found = []
    for entry in range(1, table.count + 1):
        code, mode = table.instruction(entry)
        variants = table.variants(entry)
        found += [(number, code, mode, key) for number, key in variants]
    return (each for _, *each in sorted(found))


def traces(names: Iterable[str], folder: Path) -> list[list[Variant]]:
    found = []
    for name in names:
        file = folder / f"{name.replace(' ', '-')}.json"
        if not file.exists():
            made = [(mode, code.hex(), key) for mode, code, key in trace(name)]
            file.write_text(json.dumps(made))
        read = json.loads(file.read_text())
        found.append([(Mode(*mode), bytes.fromhex(code), key) for mode, code, key in read])
        print(f"{name}: {len(read)} instructions and variants")
    return found


def executed(name: str) -> Counter[str]:
    """Boot a guest without the second tier; how often handlers were in a block that was met."""
    native = NativeCode(None)
    llvm.native_code = lambda *_: native
    addresses: Counter[int] = Counter()

    def found(self: hotspots.Hotspots, physical: int, mode: Mode) -> None:
        addresses.update(handlers_of_block(self.engine.arena, physical, mode))

    hotspots.CALM = math.inf
    hotspots.Hotspots.found = found  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(prefix="vdisk-guest-") as folder, GUESTS[name](Path(folder)):
        names = {address: shape.symbol for shape, address in native.handlers.items()}
        return Counter({names[address]: count for address, count in addresses.items()})


def handlers_of_block(there: arena.Arena, physical: int, mode: Mode) -> list[int]:
    """The handlers of the records of a block; none where it is not translated (any more)."""
    page, offset = divmod(physical, 1 << 12)
    codes = there.codes(page, mode)
    entry = there.entry(codes, offset) if codes else 0
    place = arena.PAGES + there.pages * 8 + page * arena.PAGE_ENTRY + arena.PAGE_SPANS
    number = int.from_bytes(there.bytes[place : place + 4], "little")
    while entry and number:
        following, first, count, _ = SPAN.unpack_from(
            there.bytes, arena.SPANS + number * arena.SPAN_SIZE
        )
        if first == entry:
            return [there.handler(entry + each) for each in range(count)]
        number = following
    return []


def most_executed(folder: Path) -> set[str]:
    """The symbols of the handlers that kernels spend :data:`MOST` of their time in."""
    most: set[str] = set()
    for name in (KERNEL, KERNEL_32):
        file = folder / f"{name.replace(' ', '-')}-executed.json"
        if not file.exists():
            file.write_text(json.dumps(executed(name)))
        counts = Counter(json.loads(file.read_text()))
        left = MOST * counts.total()
        for symbol, count in counts.most_common():
            if left > 0:
                most.add(symbol)
            left -= count
    return most


def marked(chosen: list[Common], most: set[str]) -> list[Common]:
    """With a note which variants are executed most."""
    found = []
    for each in chosen:
        form = common.form_of(each.code, decoder(each.mode))
        symbols = {
            key: {shape.symbol for shape in variant_shapes(form, key)} for key in each.variants
        }
        often = tuple(key for key in each.variants if symbols[key] & most)
        found.append(each._replace(often=often))
    return found


def commonest(found: list[list[Variant]]) -> list[Common]:
    """One instruction for each list of shapes, in the order in which guests need them."""
    kept: dict[tuple[object, ...], tuple[Mode, bytes, list[int]]] = {}
    for mode, code, key in chain(*found):
        alike = tuple(variant_shapes(common.form_of(code, decoder(mode)), 0))
        _, _, keys = kept.setdefault(alike, (mode, code, []))
        if key not in keys:
            keys.append(key)
    return [Common(mode, code, tuple(keys)) for mode, code, keys in kept.values()]


def together(found: list[list[Variant]]) -> list[Common]:
    """All instructions, those of the same variants one behind the other."""
    keys: dict[tuple[Mode, bytes], set[int]] = {}
    for mode, code, key in chain(*found):
        keys.setdefault((mode, code), set()).add(key)
    lines: dict[tuple[Mode, tuple[int, ...]], list[bytes]] = {}
    for (mode, code), variants in sorted(keys.items()):
        lines.setdefault((mode, tuple(sorted(variants))), []).append(code)
    return [Common(mode, b"".join(codes), variants) for (mode, variants), codes in lines.items()]


def write_kernels(folder: Path) -> None:
    for bits, kernel in ((64, KERNEL), (32, KERNEL_32)):
        chosen = together(traces([kernel], folder))
        text = HEADER.format(guests=kernel) + "".join(f"{each.text()}\n" for each in chosen)
        common.KERNELS_FILES[bits].write_bytes(zstandard.compress(text.encode(), SMALLEST))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("guests", nargs="*", metavar="GUEST", help=f"of {', '.join(GUESTS)}")
    parser.add_argument("--traces", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    names = arguments.guests or list(GUESTS)
    chosen = commonest(traces(names, arguments.traces))
    chosen = marked(chosen, most_executed(arguments.traces))
    formatter = iced.Formatter(iced.FormatterSyntax.NASM)
    with common.FILE.open("w", encoding="utf-8") as file:
        file.write(HEADER.format(guests=", ".join(names)))
        for each in chosen:
            shown = formatter.format(iced.Decoder(each.mode.code, each.code).decode())
            file.write(f"{each.text():<40} {shown}\n")
    write_kernels(arguments.traces)
    print(f"{len(chosen)} instructions, {sum(len(each.variants) for each in chosen)} variants")


if __name__ == "__main__":
    main()
