"""The integer arithmetic beside the host's processor: all rounding modes, precisions and masks."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.tools.cpu_state import ARENA, CODE, WINDOW, Case, State
from tests.tools.host_cpu import HostCpu
from tests.tools.x86_values import float32, float64, float80
from vdisk.vm.cpu.python_sse import sse
from vdisk.vm.cpu.python_x87 import x87
from vdisk.vm.cpu.state import CpuState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    not HostCpu.available(), reason="the host is the truth only where it is an x86-64 Linux"
)

CASES = 3000
RSP = 4
PE, C1, BEFORE = 0x20, 0x200, 7
EXCEPTIONS = 0x3F
NEVER_EMPTY = 0
X87 = {  # ST(0) and ST(1)
    "fadd": "d8 c1",
    "fmul": "d8 c9",
    "fsub": "d8 e1",
    "fsubr": "d8 e9",
    "fdiv": "d8 f1",
    "fdivr": "d8 f9",
    "fsqrt": "d9 fa",
    "frndint": "d9 fc",
    "fscale": "d9 fd",
}
OPCODES = {"sqrt": 0x51, "add": 0x58, "mul": 0x59, "sub": 0x5C, "min": 0x5D, "div": 0x5E} | {
    "max": 0x5F,
    "cvts": 0x5A,
}
SCALAR = {"s": 0xF3, "d": 0xF2}


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    with HostCpu() as cpu:
        yield cpu


@dataclass(frozen=True)
class Numbers:
    """Where operands come from: corners, close exponents, and results at a format's ends."""

    any: Callable[[Random], int]
    fraction_bits: int
    exponent_bits: int
    explicit: bool = False

    def pair(self, random: Random) -> tuple[int, int]:
        kind = random.random()
        if kind < 0.3:
            return self.any(random), self.any(random)
        bias = (1 << self.exponent_bits - 1) - 1
        if kind < 0.5:  # close to each other
            middle = random.randrange(1, 2 * bias)
            near = min(max(middle + random.randrange(-3, 4), 1), 2 * bias)
            return self._number(random, middle), self._number(random, near)
        target = random.choice([1, 2 * bias]) + random.randrange(-2, 3)
        first = random.randrange(bias // 2, bias + bias // 2)
        second = target - first + bias if random.random() < 0.5 else first - target + bias
        return self._number(random, first), self._number(random, min(max(second, 1), 2 * bias))

    def _number(self, random: Random, exponent: int) -> int:
        digits = random.choice([0, 1, 4, self.fraction_bits])
        fraction = random.getrandbits(digits) << self.fraction_bits - digits
        if self.explicit:
            fraction |= 1 << self.fraction_bits
        stored = self.fraction_bits + self.explicit
        sign = random.getrandbits(1) << stored + self.exponent_bits
        return sign | exponent << stored | fraction


FLOATS = {"s": Numbers(float32, 23, 8), "d": Numbers(float64, 52, 11)}
DOUBLES = Numbers(float80, 63, 15, explicit=True)


def state() -> State:
    made = State()
    made.registers.rip = ARENA + CODE
    made.registers.gprs[RSP] = ARENA + WINDOW + 0x400
    return made


@pytest.mark.parametrize("letter", SCALAR)
@pytest.mark.parametrize("operation", OPCODES)
def test_sse(host, operation, letter):
    random = Random(f"{operation} {letter}")
    name = f"{operation}s{letter}"
    if operation == "cvts":
        name = f"cvts{letter}2s{'d' if letter == 's' else 's'}"
    code = bytes([SCALAR[letter], 0x0F, OPCODES[operation], 0xC1])
    cases = []
    for _ in range(CASES):
        made = state()
        a, b = FLOATS[letter].pair(random)
        made.fpu.xmm = [a | 7 << 64, b, *[0] * 14]
        masks = EXCEPTIONS if random.random() < 0.6 else random.getrandbits(6)
        made.fpu.mxcsr = masks << 7 | random.getrandbits(2) << 13
        made.fpu.mxcsr |= random.choice([0, 0, 0x40, 0x8000, 0x8040])
        cases.append(Case(code, made))
    cpu = CpuState()
    for case, outcome in zip(cases, host.run(cases), strict=True):
        left, right = case.state.fpu.xmm[:2]
        given = cpu.mxcsr = case.state.fpu.mxcsr
        result = sse(name, cpu.view, left, right, None)
        found, unmasked = cpu.mxcsr & EXCEPTIONS, ~given >> 7 & EXCEPTIONS
        if found & unmasked & BEFORE:
            found &= BEFORE
        where = f"{name} {left:#x} {right:#x} mxcsr {given:#x}"
        assert outcome.state.fpu.mxcsr & EXCEPTIONS == found, where
        assert (outcome.vector == 19) == bool(found & unmasked), where
        wanted = left if found & unmasked else result
        assert outcome.state.fpu.xmm[0] == wanted, where


@pytest.mark.parametrize("name", X87)
def test_x87(host, name):
    random = Random(name)
    cases = []
    for _ in range(CASES):
        made = state()
        made.fpu.st = [*DOUBLES.pair(random), *[0] * 6]
        masks = EXCEPTIONS if random.random() < 0.5 else random.getrandbits(6)
        made.fpu.control = (
            0x40 | masks | random.choice([0, 2, 3]) << 8 | random.getrandbits(2) << 10
        )
        made.fpu.tag = NEVER_EMPTY
        cases.append(Case(bytes.fromhex(X87[name]), made))
    for case, outcome in zip(cases, host.run(cases), strict=True):
        first, second = case.state.fpu.st[:2]
        control = case.state.fpu.control
        value, _, status = x87(name, control, first, second)
        where = f"{name} {first:#x} {second:#x} control {control:#x}"
        assert outcome.state.fpu.status & (EXCEPTIONS | C1) == status, where
        wanted = first if status & ~control & BEFORE else value
        assert outcome.state.fpu.st[0] == wanted, where
