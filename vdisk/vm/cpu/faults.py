"""Exceptions of the guest (SDM volume 3, chapter 6)."""

from __future__ import annotations

DE, DB, NMI, BP, OF, BR, UD, NM, DF = range(9)
TS, NP, SS, GP, PF = 10, 11, 12, 13, 14
MF, AC, MC, XM = 16, 17, 18, 19

NON_CANONICAL = 0x100 | GP
"""What generated code says of an address that is not canonical: #SS(0) through RSP or RBP, else
#GP(0); which one, the instruction tells (:func:`vdisk.vm.cpu.instruction.not_canonical`)."""

SIMD_RANGE = 0x100 | XM
"""An unmasked overflow or underflow: #XM, with flags that are still to be worked out
(:func:`vdisk.vm.cpu.python_sse.out_of_range`)."""

WITH_ERROR_CODE = {DF, TS, NP, SS, GP, PF, AC}
CONTRIBUTORY = {DE, TS, NP, SS, GP}


class GuestFault(Exception):
    """An exception that happens to the guest's present instruction.

    ``error``: its error code, 0 where it has none.  ``address``: for #PF, what goes to CR2.
    """

    def __init__(self, vector: int, error: int = 0, address: int = 0) -> None:
        super().__init__(f"guest exception {vector}, error code {error:#x}")
        self.vector, self.error, self.address = vector, error, address


def is_double(first: int, second: int) -> bool:
    """True if ``second``, met while delivering ``first``, becomes #DF (SDM table 6-5)."""
    if first in CONTRIBUTORY:
        return second in CONTRIBUTORY
    return first == PF and (second in CONTRIBUTORY or second == PF)
