"""Memory type range registers (SDM volume 3, section 12.11): kept, and without effect.

There is no cache in between, so all memory is as coherent as write-back.  But firmware expects
to set them up, and systems read them to find out what their page attributes may say::

    0FE  MTRRCAP            number of variable ranges, fixed ranges (8), write combining (10)
    200-20F  PHYSBASE0, PHYSMASK0 … PHYSBASE7, PHYSMASK7
    250  64 KiB ranges from 0        258 259  16 KiB from 80000
    268-26F  4 KiB from C0000        2FF  default type, fixed ranges on (10), all on (11)
"""

from __future__ import annotations

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.paging import PHYSICAL_BITS

CAP, DEFAULT_TYPE = 0xFE, 0x2FF
RANGES = 8
VARIABLE = range(0x200, 0x200 + 2 * RANGES)
FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
CAPABILITIES = RANGES | 1 << 8 | 1 << 10
REGISTERS = (*VARIABLE, *FIXED, DEFAULT_TYPE)

TYPES = frozenset((0, 1, 4, 5, 6))
"""Uncacheable, write-combining, write-through, write-protected, write-back."""
BEYOND = ~((1 << PHYSICAL_BITS) - 1)
BASE_RESERVED, MASK_RESERVED = BEYOND | 0xF00, BEYOND | 0x7FF
DEFAULT_RESERVED = ~0xCFF


def reset() -> dict[int, int]:
    """The registers after RESET#; INIT leaves them alone."""
    return dict.fromkeys(REGISTERS, 0)


def check(index: int, value: int) -> None:
    """#GP(0) for a value that the register refuses."""
    if index in FIXED:
        reserved, types = 0, value.to_bytes(8, "little")
    elif index == DEFAULT_TYPE:
        reserved, types = DEFAULT_RESERVED, bytes([value & 0xFF])
    elif index & 1:
        reserved, types = MASK_RESERVED, b""
    else:
        reserved, types = BASE_RESERVED, bytes([value & 0xFF])
    if value & reserved or not TYPES.issuperset(types):
        raise GuestFault(faults.GP)
