"""AES-NI and carry-less multiplication in Python (FIPS 197; SDM volume 2 by mnemonic).

An AES state is the register's sixteen bytes, lowest first: columns of four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.python_lanes import lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Operation = Callable[[int, int, int], int]

AES_POLYNOMIAL = 0x11B
MIX = (2, 3, 1, 1)
INVERSE_MIX = (14, 11, 13, 9)
SHIFTED = [(n + 4 * (n % 4)) % 16 for n in range(16)]
"""Where each byte comes from in ShiftRows: row r of column c from column c + r."""
UNSHIFTED = [(n - 4 * (n % 4)) % 16 for n in range(16)]


def carryless(a: int, b: int) -> int:
    """The product of two polynomials over GF(2)."""
    product = 0
    while b:
        lowest = b & -b
        product ^= a * lowest
        b ^= lowest
    return product


def _powers() -> bytes:
    """The powers of 3, which are all of GF(2^8) but 0."""
    powers, value = bytearray(), 1
    for _ in range(255):
        powers.append(value)
        value ^= value << 1
        if value >> 8:
            value ^= AES_POLYNOMIAL
    return bytes(powers)


POWERS = _powers()
LOGARITHMS = {value: power for power, value in enumerate(POWERS)}


def multiply(a: int, b: int) -> int:
    """The product in GF(2^8)."""
    return POWERS[(LOGARITHMS[a] + LOGARITHMS[b]) % 255] if a and b else 0


def _substitution() -> bytes:
    """The S-box: the inverse, then an affine transformation (FIPS 197, section 5.1.1)."""
    table = bytearray(256)
    for value in range(256):
        inverse = POWERS[-LOGARITHMS[value] % 255] if value else 0
        doubled = inverse | inverse << 8
        turned = (doubled >> turn for turn in (8, 7, 6, 5, 4))
        total = 0x63
        for item in turned:
            total ^= item & 0xFF
        table[value] = total
    return bytes(table)


def _products(factor: int) -> bytes:
    return bytes(multiply(factor, value) for value in range(256))


S_BOX = _substitution()
INVERSE_S_BOX = bytes(S_BOX.index(value) for value in range(256))
_PRODUCTS = {factor: _products(factor) for factor in {*MIX, *INVERSE_MIX}}


def _mix(state: bytes, factors: Sequence[int]) -> bytes:
    """Each column multiplied with a circulant matrix."""
    mixed = bytearray(16)
    for n in range(16):
        column, row = n & ~3, n & 3
        for k in range(4):
            mixed[n] ^= _PRODUCTS[factors[(k - row) % 4]][state[column + k]]
    return bytes(mixed)


def _round(box: bytes, places: Sequence[int], factors: Sequence[int] | None) -> Operation:
    def operation(left: int, right: int, _: int) -> int:
        state = left.to_bytes(16, "little")
        state = bytes(box[state[place]] for place in places)
        if factors is not None:
            state = _mix(state, factors)
        return int.from_bytes(state, "little") ^ right

    return operation


def _inverse_mix(_: int, right: int, __: int) -> int:
    return int.from_bytes(_mix(right.to_bytes(16, "little"), INVERSE_MIX), "little")


def _keygen_assist(_: int, right: int, immediate: int) -> int:
    words = lanes(right, 32)
    result = 0
    for place, word in ((0, words[1]), (64, words[3])):
        substituted = int.from_bytes(word.to_bytes(4, "little").translate(S_BOX), "little")
        turned = (substituted >> 8 | substituted << 24) & 0xFFFF_FFFF
        result |= (substituted | (turned ^ immediate) << 32) << place
    return result


def _pclmulqdq(left: int, right: int, immediate: int) -> int:
    return carryless(lanes(left, 64)[immediate & 1], lanes(right, 64)[immediate >> 4 & 1])


CRYPTO: dict[str, Operation] = {
    "aesenc": _round(S_BOX, SHIFTED, MIX),
    "aesenclast": _round(S_BOX, SHIFTED, None),
    "aesdec": _round(INVERSE_S_BOX, UNSHIFTED, INVERSE_MIX),
    "aesdeclast": _round(INVERSE_S_BOX, UNSHIFTED, None),
    "aesimc": _inverse_mix,
    "aeskeygenassist": _keygen_assist,
    "pclmulqdq": _pclmulqdq,
}
"""By mnemonic: (left, right, immediate) to result."""
