"""Values at which arithmetic breaks: corners of integers and of floating-point formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.tools.cpu_state import full_tag
from vdisk.vm.accel.base import FpuState

if TYPE_CHECKING:
    from random import Random

FLOAT32 = (
    *(0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x00000001, 0x807FFFFF, 0x00800000),
    *(0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F800001),
    *(0xFF812345, 0x4B000000, 0x4EFFFFFF, 0x4F000000, 0xCF000000, 0x5F000000, 0x3F000000),
    *(0xBFC00000, 0x40200000, 0x3FFFFFFF, 0x33800000),
)
FLOAT64 = (
    *(0, 1 << 63, 0x3FF0000000000000, 0xBFF0000000000000, 1, 0x800FFFFFFFFFFFFF),
    *(0x0010000000000000, 0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF, 0x7FF0000000000000),
    *(0xFFF0000000000000, 0x7FF8000000000000, 0xFFF8123456789ABC, 0x7FF0000000000001),
    *(0xFFF0123456789ABC, 0x4330000000000000, 0x41DFFFFFFFC00000, 0x41E0000000000000),
    *(0xC1E0000000000000, 0x43E0000000000000, 0xC3E0000000000000, 0x3FE0000000000000),
    *(0x3FF8000000000000, 0xC004000000000000, 0x36A0000000000000, 0x380FFFFFFFFFFFFF),
)
_INTEGER_BIT = 1 << 63
FLOAT80 = (
    *(0, 1 << 79, 0x3FFF << 64 | _INTEGER_BIT, 0xBFFF << 64 | _INTEGER_BIT, 1, 1 << 79 | 5),
    *(_INTEGER_BIT, 1 << 64 | _INTEGER_BIT, 0x7FFE << 64 | (1 << 64) - 1),  # pseudo-denormal …
    *(0x7FFF << 64 | _INTEGER_BIT, 0xFFFF << 64 | _INTEGER_BIT, 0x7FFF << 64 | 3 << 62),
    *(0xFFFF << 64 | 3 << 62, 0x7FFF << 64 | _INTEGER_BIT | 1, 0xFFFF << 64 | 3 << 62 | 0x1234),
    *(0x7FFF << 64, 0x7FFF << 64 | 12, 0x4000 << 64 | 1 << 62, 0xC000 << 64 | 5),  # unsupported
    *(0x403E << 64 | _INTEGER_BIT, 0xC03E << 64 | _INTEGER_BIT, 0x401E << 64 | _INTEGER_BIT),
    *(0x3FFE << 64 | _INTEGER_BIT, 0x3FFF << 64 | 3 << 62, 0x4000 << 64 | 0xC90FDAA22168C235),
    *(0x3FC0 << 64 | _INTEGER_BIT, 0x403D << 64 | (1 << 64) - 1, 0x3F81 << 64 | _INTEGER_BIT),
)


def integer(rng: Random, bits: int) -> int:
    """An integer of ``bits`` bits: often a corner, often small, else anything."""
    kind = rng.random()
    if kind < 0.35:
        sign = 1 << bits - 1
        corner = (0, 1, 2, sign - 1, sign, sign + 1, 2 * sign - 1, 2 * sign - 2)
        return rng.choice(corner)
    if kind < 0.5:
        return rng.randrange(0x100)
    if kind < 0.6 and bits > 8:
        narrow = rng.choice([8, 16, 32, 64])
        value = integer(rng, min(narrow, bits))
        return (value ^ 1 << narrow - 1) - (1 << narrow - 1) & (1 << bits) - 1
    return rng.getrandbits(bits)


def _near_a_limit(rng: Random, width: int, fraction_bits: int) -> int:
    """A finite value whose products and quotients overflow, underflow or become denormal."""
    largest = (1 << width - 1 - fraction_bits) - 2
    near = rng.randrange(1 + fraction_bits)
    exponent = rng.choice([0, near, largest - near, largest // 2 + rng.randrange(-near - 1, near)])
    digits = rng.getrandbits(fraction_bits) >> rng.randrange(fraction_bits)
    if rng.random() < 0.5:  # few digits: exact results, even of denormals
        digits = rng.getrandbits(6) << fraction_bits - 6
    return rng.getrandbits(1) << width - 1 | exponent << fraction_bits | digits


NEAR_A_LIMIT = 0.2


def float32(rng: Random) -> int:
    """A binary32 value."""
    if rng.random() < NEAR_A_LIMIT:
        return _near_a_limit(rng, 32, 23)
    if rng.random() < 0.5:
        return rng.choice(FLOAT32)
    if rng.random() < 0.7:  # a moderate exponent, few digits
        digits = rng.getrandbits(23) >> rng.randrange(23)
        return rng.getrandbits(1) << 31 | 127 + rng.randrange(-30, 35) << 23 | digits
    return rng.getrandbits(32)


def float64(rng: Random) -> int:
    """A binary64 value."""
    if rng.random() < NEAR_A_LIMIT:
        return _near_a_limit(rng, 64, 52)
    if rng.random() < 0.5:
        return rng.choice(FLOAT64)
    if rng.random() < 0.7:
        digits = rng.getrandbits(52) >> rng.randrange(52)
        return rng.getrandbits(1) << 63 | 1023 + rng.randrange(-70, 70) << 52 | digits
    return rng.getrandbits(64)


def float80(rng: Random) -> int:
    """A double extended value; some of encodings that no arithmetic gives."""
    if rng.random() < NEAR_A_LIMIT:
        value = _near_a_limit(rng, 79, 63)
        normal = _INTEGER_BIT if value >> 63 & 0x7FFF else 0
        return (value >> 63) << 64 | normal | value & _INTEGER_BIT - 1
    if rng.random() < 0.4:
        return rng.choice(FLOAT80)
    sign = rng.getrandbits(1) << 79
    significand = _INTEGER_BIT | (rng.getrandbits(63) >> rng.randrange(63) << rng.randrange(2))
    if rng.random() < 0.8:
        return sign | 0x3FFF + rng.randrange(-70, 70) << 64 | significand & (1 << 64) - 1
    return sign | rng.randrange(1, 0x7FFF) << 64 | significand & (1 << 64) - 1


def bcd80(rng: Random) -> int:
    """A packed BCD integer of 18 digits (FBLD)."""
    digits = rng.choice([0, 1, 5, 10, 17, 18])
    value = int(str(rng.randrange(10**digits)), 16)
    return rng.getrandbits(1) << 79 | value


def vector128(rng: Random) -> int:
    """Sixteen bytes, of a kind of element or of another."""
    kind = rng.randrange(5)
    if kind == 0:
        return sum(float32(rng) << 32 * i for i in range(4))
    if kind == 1:
        return float64(rng) | float64(rng) << 64
    if kind == 2:
        bits = rng.choice([8, 16, 32, 64])
        return sum(integer(rng, bits) << bits * i for i in range(128 // bits))
    if kind == 3:  # text and zero bytes for the string instructions
        return int.from_bytes(bytes(rng.choice(b"\0abAB\x80\xff") for _ in range(16)), "little")
    return rng.getrandbits(128)


def _masks(random: Random) -> int:
    """Which exceptions are masked: mostly all, now and then all but overflow or underflow."""
    if random.random() < 0.8:
        return 0x3F
    return random.choice([random.getrandbits(6), 0x37, 0x2F, 0x27])


def random_fpu(random: Random, mode: int) -> FpuState:
    """An FPU: mostly with exceptions masked and some registers in use."""
    fpu = FpuState()
    fpu.st = [float80(random) for _ in range(8)]
    fpu.control = 0x40 | random.choice([0, 2, 3, 3]) << 8 | random.getrandbits(2) << 10
    fpu.control |= _masks(random)
    fpu.status = random.getrandbits(3) << 11
    if random.random() < 0.4:
        fpu.status |= (
            random.getrandbits(6) | random.getrandbits(3) << 8 | random.getrandbits(1) << 14
        )
    if fpu.status & 0x3F & ~fpu.control:
        fpu.status |= 0x8080  # ES and B: an exception is pending
    used = random.choice([0xFF, 0xFF, 0xFF, 0xF0, 0x0F, 0, random.getrandbits(8)])
    fpu.tag = full_tag(used, fpu.st, fpu.status)
    usable = 16 if mode == 64 else 8
    fpu.xmm = [vector128(random) for _ in range(usable)] + [0] * (16 - usable)
    fpu.mxcsr = _masks(random) << 7
    fpu.mxcsr |= random.getrandbits(2) << 13
    if random.random() < 0.3:
        fpu.mxcsr |= random.choice([0x40, 0x8000, 0x8040, 0x3F, 1, 0x20])
    return fpu
