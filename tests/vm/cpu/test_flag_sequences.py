"""Flags from one instruction to another: random sequences, on every engine and on the host.

Which flags an instruction leaves, and which of them anybody looks at, is known when a block is
translated; a single instruction shows none of its mistakes.
"""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest
from iced_x86 import Code

from tests.tools.cpu_compare import describe, differences
from tests.tools.cpu_state import ARENA, ARITHMETIC_FLAGS, CODE, LONGEST_CODE, base_of
from tests.tools.engines import ENGINES
from tests.tools.guest_cpu import GuestCpu
from tests.tools.host_cpu import HostCpu
from tests.tools.x86_cases import Generator
from vdisk.vm.cpu.flags import AF, CF, OF, PF, SF, ZF, flags_read_by_condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.tools.cpu_state import Case

pytestmark = pytest.mark.skipif(
    not HostCpu.available(), reason="the host is the truth only where it is an x86-64 Linux"
)

SEED = int(os.environ.get("VDISK_TEST_SEED", "1"))
SEQUENCES = int(os.environ.get("VDISK_TEST_CASES", "2")) * 100
REGISTERS = (0, 1, 2, 3, 6, 7)
"""All of the first eight but the stack's."""
BYTES = (0, 1, 2, 3)
"""Those whose lowest byte has a number of its own without a REX prefix."""
COUNTS = (0, 1, 2, 5, 31, 32, 33, 64)
ARITHMETIC, LOGICAL = (0x01, 0x29, 0x39, 0x11, 0x19), (0x21, 0x09, 0x31, 0x85)
SHIFTS, ROTATES = (4, 5, 7), (0, 1, 2, 3)


class Sequence:
    """Instructions behind one another; ``undefined``: flags that the manual leaves open by now."""

    def __init__(self, random: Random) -> None:
        self.random, self.code, self.undefined = random, b"", 0
        while len(self.code) < LONGEST_CODE - 6:
            random.choice(KINDS)(self)

    def add(self, *code: int) -> None:
        self.code += bytes(code)

    def pick(self, numbers: tuple[int, ...]) -> int:
        return self.random.choice(numbers)

    def registers(self) -> int:
        """A ModRM byte of two registers."""
        return 0xC0 | self.pick(REGISTERS) << 3 | self.pick(REGISTERS)

    def leave(self, defined: int, undefined: int = 0) -> None:
        self.undefined = self.undefined & ~defined | undefined

    # -- what leaves flags ---------------------------------------------------------------------

    def arithmetic(self) -> None:
        self.add(self.pick(ARITHMETIC), self.registers())
        self.leave(ARITHMETIC_FLAGS)

    def logical(self) -> None:
        self.add(self.pick(LOGICAL), self.registers())
        self.leave(ARITHMETIC_FLAGS, AF)

    def increment(self) -> None:
        self.add(self.pick((0xFE, 0xFF)), 0xC0 | self.pick((0, 8)) | self.pick(BYTES))
        self.leave(ARITHMETIC_FLAGS & ~CF)

    def negate(self) -> None:
        self.add(0xF7, 0xD8 | self.pick(REGISTERS))
        self.leave(ARITHMETIC_FLAGS)

    def multiply(self) -> None:
        self.add(0x0F, 0xAF, self.registers())
        self.leave(ARITHMETIC_FLAGS, SF | ZF | AF | PF)

    def bit_test(self) -> None:
        self.add(0x0F, self.pick((0xA3, 0xAB, 0xB3, 0xBB)), self.registers())
        self.leave(CF, OF | SF | AF | PF)

    def carry(self) -> None:
        self.add(self.pick((0xF5, 0xF8, 0xF9)))
        self.leave(CF)

    def sahf(self) -> None:
        self.add(0x9E)
        self.leave(CF | PF | AF | ZF | SF)

    def shift(self) -> None:
        count = self.pick(COUNTS)
        self.add(0xC1, 0xC0 | self.pick(SHIFTS) << 3 | self.pick(REGISTERS), count)
        if count & 31:
            self.leave(ARITHMETIC_FLAGS, AF if count & 31 == 1 else AF | OF)

    def rotate(self) -> None:
        count = self.pick(COUNTS)
        self.add(0xC1, 0xC0 | self.pick(ROTATES) << 3 | self.pick(REGISTERS), count)
        if count & 31:
            self.leave(CF | OF, 0 if count & 31 == 1 else OF)

    def shift_by_cl(self) -> None:
        kinds = SHIFTS if self.random.random() < 0.5 else ROTATES
        self.add(0xD3, 0xC0 | self.pick(kinds) << 3 | self.pick(REGISTERS))
        self.leave(0, OF | (AF if kinds is SHIFTS else 0))

    # -- what looks at them --------------------------------------------------------------------

    def _condition(self) -> int:
        defined = [n for n in range(16) if not flags_read_by_condition(n) & self.undefined]
        return self.random.choice(defined)

    def set_byte(self) -> None:
        self.add(0x0F, 0x90 | self._condition(), 0xC0 | self.pick(BYTES))

    def conditional_move(self) -> None:
        self.add(0x0F, 0x40 | self._condition(), self.registers())

    def jump(self) -> None:
        self.add(0x70 | self._condition(), 0)

    def move(self) -> None:
        self.add(0x89, self.registers())


KINDS: tuple[Callable[[Sequence], None], ...] = (
    *(Sequence.arithmetic, Sequence.logical, Sequence.increment, Sequence.increment),
    *(Sequence.negate, Sequence.multiply, Sequence.bit_test, Sequence.carry, Sequence.sahf),
    *(Sequence.shift, Sequence.shift, Sequence.rotate, Sequence.shift_by_cl, Sequence.move),
    *(Sequence.set_byte, Sequence.set_byte, Sequence.conditional_move, Sequence.jump),
)


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    with HostCpu() as cpu:
        yield cpu


@pytest.fixture(params=ENGINES, ids=str)
def engine(request):
    request.param.require()
    return request.param


def sequence(random: Random, mode: int) -> Case:
    """A case of many instructions."""
    made, case = Sequence(random), Generator(random, mode).case(Code.NOPD)
    case.code, case.note = made.code, "a sequence"
    case.state.registers.rip = ARENA + CODE - base_of(mode)
    case.ignored_flags = made.undefined
    return case


@pytest.mark.parametrize("mode", [64, 32])
def test_flags_are_what_the_processors_are(host, engine, mode):
    random = Random(f"{SEED} {mode}")
    cases = [sequence(random, mode) for _ in range(max(int(SEQUENCES * engine.share), 4))]
    guest = GuestCpu(engine.make)
    wrong = []
    try:
        for case, expected in zip(cases, host.run(cases), strict=True):
            found = differences(case, expected, guest.run_one(case))
            if found:
                wrong.append("\n    ".join([describe(case), *found]))
    finally:
        guest.close()
    if wrong:
        pytest.fail(
            f"{len(wrong)} of {len(cases)} differ\n" + "\n\n".join(wrong[:4]), pytrace=False
        )
