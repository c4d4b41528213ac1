"""Boot loaders' menus: the same picture under our BIOS, under SeaBIOS, and on QEMU's screen.

With SeaBIOS (and its video BIOS) pictures are QEMU's, dot for dot, but for the two lowest bits of
each colour, which QEMU widens from six bits in another way.  Our BIOS has a font of its own: the
characters and colours of a text screen are the same, and a cell's dots but for a few.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.tools import bootable, qemu_machine
from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.vm import Machine
from vdisk.vm.display.base import TextFrame
from vdisk.vm.display.image import to_rgb

pytestmark = requires_peer(
    "qemu-system-x86_64", "syslinux", "mformat", "mcopy", "grub-mkimage", "mke2fs", guests.SEABIOS
)
MIB = 1 << 20
LOOK_SECONDS = 0.2
STILL_SECONDS = 1.0
CELL_WIDTH, CELL_HEIGHT = 9, 16
LARGEST_DIFFERENCE = 48
"""Dots of a cell's 144 in which two fonts may draw a character differently."""
SIX_BITS = bytes(value & 0xFC for value in range(256))

SYSLINUX_MENU = """UI menu.c32
MENU TITLE What to start
LABEL one
  MENU LABEL First choice
  KERNEL none
LABEL two
  MENU LABEL Second choice
  KERNEL none
"""


class Picture(NamedTuple):
    """A screen: its size, the upper six bits of its colours, and its characters if it has any."""

    width: int
    height: int
    rgb: bytes
    text: TextFrame | None = None


class Menu(NamedTuple):
    """A medium to boot from, as it is plugged in."""

    image: Path
    media: str

    def ours(self, bios: str | None) -> Machine:
        disks = [f"{self.image},format=raw,snapshot=on"] if self.media == "disk" else []
        cdroms = [str(self.image)] if self.media == "cdrom" else []
        return Machine(memory=64 * MIB, accel="llvm", bios=bios, disks=disks, cdroms=cdroms)

    def qemu(self) -> list[str]:
        options = "format=raw,snapshot=on,if=ide"
        return ["-m", "64", "-drive", f"file={self.image},{options},media={self.media}"]


def syslinux(folder: Path) -> Menu:
    modules = ("menu.c32", "libutil.c32")
    files = {name: bootable.SYSLINUX_MODULES / name for name in modules}
    return Menu(bootable.syslinux_disk(folder, SYSLINUX_MENU, files), "disk")


def grub(folder: Path) -> Menu:
    return Menu(bootable.grub_disk(folder, bootable.GRUB_CONFIG), "disk")


def grub_in_graphics(folder: Path) -> Menu:
    config = bootable.GRUB_GRAPHICS + bootable.GRUB_CONFIG
    return Menu(bootable.grub_rescue(folder, config), "cdrom")


def shown(machine: Machine) -> Picture:
    frame, text = machine.screen.frame(), machine.screen.text()
    return Picture(frame.width, frame.height, to_rgb(frame.pixels).translate(SIX_BITS), text)


def shown_by_qemu(monitor: qemu_machine.Monitor) -> Picture:
    width, height, rgb = monitor.picture()
    return Picture(width, height, rgb.translate(SIX_BITS))


def still(picture: Callable[[], Picture], ready: Callable[[Picture], bool]) -> Picture:
    """What a screen shows when it is ready and does not change any more."""
    deadline, since, last = time.monotonic() + PATIENCE, time.monotonic(), picture()
    while not (ready(last) and time.monotonic() > since + STILL_SECONDS):
        assert time.monotonic() < deadline, last.text
        time.sleep(LOOK_SECONDS)
        if (now := picture()) != last:
            last, since = now, time.monotonic()
    return last


def comes_to_show(machine: Machine, difference: Callable[[Picture], str]) -> Picture:
    """Wait until a machine shows what it should: until nothing differs."""
    machine.start()
    deadline = time.monotonic() + PATIENCE
    while (why := difference(picture := shown(machine))) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    assert not why, why
    return picture


def other_dots(picture: Picture, expected: Picture) -> str:
    """Where two pictures are not the same, dot for dot."""
    if picture[:2] != expected[:2]:
        return f"{picture[:2]}, not {expected[:2]}"
    if picture.rgb == expected.rgb:
        return ""
    pairs = zip(picture.rgb, expected.rgb, strict=True)
    first = next(at for at, (ours, theirs) in enumerate(pairs) if ours != theirs) // 3
    return f"the dot at {first % picture.width}, {first // picture.width} differs"


def other_cells(picture: Picture, expected: Picture) -> str:
    """Where two text screens differ in more than the shape of their characters."""
    if picture[:2] != expected[:2] or picture.text is None or expected.text is None:
        return f"{picture[:2]}, not {expected[:2]}"
    if picture.text.cells != expected.text.cells:
        return f"other characters: {picture.text.cells[::2].decode('cp437')}"
    for row in range(picture.text.rows):
        for column in range(picture.text.columns):
            ours, theirs = (cell_dots(each, row, column) for each in (picture, expected))
            count = sum(a != b for a, b in zip(ours, theirs, strict=True))
            if count > LARGEST_DIFFERENCE or set(ours) - set(theirs):
                return f"row {row}, column {column}: {count} dots differ"
    return ""


def cell_dots(picture: Picture, row: int, column: int) -> list[bytes]:
    """The colours of a character cell's dots."""
    found, line = [], 3 * picture.width
    for y in range(row * CELL_HEIGHT, (row + 1) * CELL_HEIGHT):
        start = y * line + 3 * CELL_WIDTH * column
        found += [picture.rgb[at : at + 3] for at in range(start, start + 3 * CELL_WIDTH, 3)]
    return found


@pytest.mark.parametrize("make", [syslinux, grub])
def test_a_text_menu_is_the_same(make: Callable[[Path], Menu], tmp_path: Path) -> None:
    menu = make(tmp_path)
    with qemu_machine.running(*menu.qemu()) as monitor:
        monitor.wait_for_text("Second choice", PATIENCE)
        expected = still(lambda: shown_by_qemu(monitor), bool)
        cells = monitor.cells()
    with menu.ours(guests.SEABIOS) as machine:
        seabios = comes_to_show(machine, lambda picture: other_dots(picture, expected))
        assert seabios.text is not None and seabios.text.cells == cells
    with menu.ours(None) as machine:
        comes_to_show(machine, lambda picture: other_cells(picture, seabios))


@pytest.mark.timeout(240)
def test_a_graphical_menu_is_the_same(tmp_path: Path) -> None:
    """800 x 600 dots of 32 bits, drawn by GRUB with a font of its own."""
    menu = grub_in_graphics(tmp_path)
    with qemu_machine.running(*menu.qemu()) as monitor:
        expected = still(lambda: shown_by_qemu(monitor), menu_is_drawn)
    for bios in (guests.SEABIOS, None):
        with menu.ours(bios) as machine:
            comes_to_show(machine, lambda picture: other_dots(picture, expected))


def menu_is_drawn(picture: Picture) -> bool:
    """True if the bar over the chosen entry shows: a row of more than 700 bright dots."""
    if picture[:2] != (800, 600):
        return False
    rows = (picture.rgb[at : at + 2400 : 3] for at in range(0, len(picture.rgb), 2400))
    return any(sum(value > 0x60 for value in row) > 700 for row in rows)
