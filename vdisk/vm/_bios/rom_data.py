"""The data of the ROM: what programs find through pointers that the BIOS gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios.video import font
from vdisk.vm._bios.video.modes import parameter_table
from vdisk.vm._bios.video.state import static_functionality

if TYPE_CHECKING:
    from collections.abc import Iterator

VENDOR, REVISION = b"vdisk VBE\0", b"1.0\0"
SAVE_AREA_SIZE = 28


def pieces() -> Iterator[tuple[str, bytes]]:
    """(label, bytes) of each piece, in order."""
    yield "font_8x8", font.font(8)
    yield "font_8x14", font.font(14)
    yield "font_8x16", font.font(16)
    yield "no_alternate_font", bytes(1)
    yield "mode_parameters", parameter_table()
    yield "save_area", bytes(SAVE_AREA_SIZE)
    yield "functionality", static_functionality()
    yield "vbe_vendor", VENDOR
    yield "vbe_revision", REVISION
