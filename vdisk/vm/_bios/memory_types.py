"""Memory type range registers as firmware sets them, alike on all processors (SDM 3, 12.11).

::

    0 - 9FFFF write-back | A0000 - BFFFF uncacheable | C0000 - FFFFF write-protected
    the hole for PCI below 4 GiB: uncacheable, by the first variable range | all else write-back

A system that finds them switched off does without page attributes (PAT) as well.
"""

from __future__ import annotations

UNCACHEABLE, WRITE_PROTECTED, WRITE_BACK = 0, 5, 6
BASE_0, MASK_0 = 0x200, 0x201
FIXED_64K, FIXED_16K_80000, FIXED_16K_A0000 = 0x250, 0x258, 0x259
FIXED_4K = range(0x268, 0x270)
DEFAULT_TYPE = 0x2FF
ENABLED, FIXED_ENABLED, VALID = 1 << 11, 1 << 10, 1 << 11
FOUR_GIB, TWO_GIB = 1 << 32, 1 << 31
PHYSICAL_BITS = 40


def memory_types(low_end: int) -> dict[int, int]:
    """Register numbers and values for RAM that ends at ``low_end`` below 4 GiB."""
    hole = TWO_GIB if low_end <= TWO_GIB else FOUR_GIB - (1 << 30)
    return {
        FIXED_64K: _all(WRITE_BACK),
        FIXED_16K_80000: _all(WRITE_BACK),
        FIXED_16K_A0000: _all(UNCACHEABLE),
        **dict.fromkeys(FIXED_4K, _all(WRITE_PROTECTED)),
        BASE_0: hole | UNCACHEABLE,
        MASK_0: (1 << PHYSICAL_BITS) - (FOUR_GIB - hole) | VALID,
        DEFAULT_TYPE: ENABLED | FIXED_ENABLED | WRITE_BACK,
    }


def _all(kind: int) -> int:
    """Eight ranges of a kind."""
    return kind * 0x0101_0101_0101_0101
