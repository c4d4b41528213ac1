"""Diskettes: which geometry an image's size stands for (IBM PC, PS/2; IEC 60-ECMA formats).

Drive types are those of CMOS memory and int 13h AH=08h: 1 360 KB, 2 1.2 MB, 3 720 KB, 4 1.44 MB,
5 2.88 MB.
"""

from __future__ import annotations

from vdisk.emu_block.geometry import Geometry

DISKETTES = {  # KiB: geometry, drive type
    160: (Geometry(40, 1, 8), 1),
    180: (Geometry(40, 1, 9), 1),
    320: (Geometry(40, 2, 8), 1),
    360: (Geometry(40, 2, 9), 1),
    720: (Geometry(80, 2, 9), 3),
    1200: (Geometry(80, 2, 15), 2),
    1440: (Geometry(80, 2, 18), 4),
    1680: (Geometry(80, 2, 21), 4),
    2880: (Geometry(80, 2, 36), 5),
}


def diskette_geometry(sectors: int) -> tuple[Geometry, int]:
    """Geometry and drive type of a diskette; an odd size is a 1.44 MB one with other tracks."""
    found = DISKETTES.get(sectors // 2)
    if found is not None:
        return found
    return Geometry(max(-(-sectors // 36), 1), 2, 18), 4
