"""Every engine beside the host's processor: all instructions, each with several operands and
states.

``VDISK_TEST_CASES`` gives how many cases each encoding gets (default 2), ``VDISK_TEST_SEED`` the
seed; a failure prints the state that a case begins in, and what differs after it.
"""

from __future__ import annotations

import copy
import itertools
import os
import struct
from random import Random
from typing import TYPE_CHECKING

import pytest
from iced_x86 import Code

from tests.tools.cpu_compare import describe, differences, ending
from tests.tools.cpu_state import ARENA, BORDER, DATA, DATA_SIZE, PAGE, READ_ONLY, base_of
from tests.tools.engines import ENGINES
from tests.tools.guest_cpu import GuestCpu
from tests.tools.host_cpu import HostCpu
from tests.tools.x86_cases import Generator
from tests.tools.x86_codes import GROUPS, codes, group_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tools.cpu_state import Case, Outcome
    from tests.tools.engines import Engine

pytestmark = pytest.mark.skipif(
    not HostCpu.available(), reason="the host is the truth only where it is an x86-64 Linux"
)

CASES = int(os.environ.get("VDISK_TEST_CASES", "2"))
SEED = int(os.environ.get("VDISK_TEST_SEED", "1"))
SHOWN = 12


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    with HostCpu() as cpu:
        yield cpu


@pytest.fixture(scope="module", params=ENGINES, ids=str)
def engine(request) -> Engine:
    request.param.require()
    return request.param


@pytest.fixture(scope="module")
def guest(engine) -> Iterator[GuestCpu]:
    cpu = GuestCpu(engine.make)
    yield cpu
    cpu.close()


def is_fair(engine: Engine, case: Case, outcome: Outcome) -> bool:
    """False for what a KVM does that emulates where it has no hardware for it: compatibility
    mode without x87 and SSE, #UD for exceptions, its own selectors.  And for CR8 by LOCK MOV CR0,
    which is AMD's alone."""
    if case.code[:2] == b"\xf0\x0f" and case.code[2] in {0x20, 0x22}:
        return False
    if engine.name != "kvm":
        return True
    reads_selector = case.note.startswith("mov") and case.note[-2:] in {"es", "cs", "ss", "ds"}
    return case.mode == 64 and outcome.vector is None and not reads_selector


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("mode", [64, 32, 16])
def test_an_engine_does_what_the_processor_does(host, guest, engine, mode, group):
    random = Random(f"{SEED} {mode} {group}")
    chosen = [code for code in codes(mode) if group_of(code) == group] * CASES
    if engine.share < 1:
        chosen = random.sample(chosen, max(int(len(chosen) * engine.share), 4))
    generator = Generator(random, mode)
    cases = [generator.case(code) for code in chosen]
    wrong, outcomes = [], host.run(cases)
    for case, expected in zip(cases, outcomes, strict=True):
        if is_fair(engine, case, expected):
            found = differences(case, expected, guest.run_one(case))
            if found:
                wrong.append(describe(case) + "".join(f"\n    {line}" for line in found))
    if wrong:
        text = "\n\n".join(wrong[:SHOWN])
        pytest.fail(f"{len(wrong)} of {len(cases)} cases differ\n{text}", pytrace=False)


ALL_REGISTERS = (Code.PUSHAW, Code.PUSHAD, Code.POPAW, Code.POPAD)
BORDERS = (READ_ONLY, READ_ONLY + PAGE, DATA, DATA + DATA_SIZE, BORDER)


@pytest.mark.parametrize("mode", [32, 16])
def test_pusha_and_popa_at_the_borders_of_pages(host, guest, engine, mode):
    """Which address a fault tells.  (Processors may have popped some registers before one.)"""
    if engine.name == "kvm":
        pytest.skip("a KVM that emulates tells its own")
    generator = Generator(Random(SEED), mode)
    cases = []
    for code in ALL_REGISTERS:
        model = generator.case(code)
        for border in BORDERS:
            for distance in range(-34, 35, 1 if engine.share == 1 else 11):
                case = copy.deepcopy(model)
                case.state.registers.gprs[4] = ARENA - base_of(mode) + border + distance
                case.note = f"{model.note} {distance:+d} from {border:#x}"
                cases.append(case)
    wrong = [
        f"{case.note}: {ending(found)}, should {ending(expected)}"
        for case, expected in zip(cases, host.run(cases), strict=True)
        if ending(found := guest.run_one(case)) != ending(expected)
    ]
    assert not wrong


HINTS = (*range(0x18, 0x20),)
"""0F 18 to 0F 1F: prefetches, ENDBR, RDSSP, bounds: nothing where a processor knows none."""


@pytest.mark.parametrize("mode", [64, 32, 16])
def test_hints_are_no_operations(host, guest, engine, mode):
    model = Generator(Random(SEED), mode).case(Code.NOPD)
    model.state.registers.gprs[3] = DATA + (ARENA - base_of(mode))
    model.state.registers.gprs[7] = 64
    prefixes = [b"", b"\x66", b"\xf3", b"\xf2", *([b"\xf3\x48"] if mode == 64 else [])]
    cases = []
    for code, prefix, register, form in itertools.product(HINTS, prefixes, range(8), (0xC2, 0x03)):
        case = copy.deepcopy(model)
        case.code = prefix + bytes([0x0F, code, form | register << 3])
        case.note = case.code.hex()
        cases.append(case)
    wrong = [
        f"{case.note}: {ending(found)}, should {ending(expected)}"
        for case, expected in zip(cases, host.run(cases), strict=True)
        if is_fair(engine, case, expected)
        and ending(found := guest.run_one(case)) != ending(expected)
    ]
    assert not wrong


INFINITY, MASKED = float("inf"), 0x1F80
IM, OM, DM, PM = 1 << 7, 1 << 10, 1 << 8, 1 << 12
DOT_PRODUCTS = {
    "inexact products, an invalid sum": ((INFINITY, -INFINITY, 1 / 3, 1), (1, 1, 1 / 3, 1), IM),
    "a tiny product, a denormal addend": ((1e-30, 1 / 3, 1, 1), (1e-10, 1 / 3, 1, 1), DM),
    "a denormal factor, inexact products": ((1e-40, 1 / 3, 1, 1), (1, 1 / 3, 1, 1), DM),
    "an overflow, an invalid sum": ((1e38, 1e-40, INFINITY, -INFINITY), (1e38, 1, 1, 1), OM),
    "inexact products, a sum too large": ((3e38, 3e38, 1 / 3, 1), (1, 1, 1 / 3, 1), OM),
    "an inexact first sum": ((1, 2**-30, 1, 1), (1, 1, 1, 1), PM),
    "an inexact second sum": ((1, 0, 2**-30, 0), (1, 1, 1, 1), PM),
    "nothing unmasked": ((INFINITY, 1e-40, 1 / 3, 1), (0, 1, 1 / 3, 1e-40), 0),
}


@pytest.mark.parametrize("name", DOT_PRODUCTS)
def test_a_dot_product_ends_with_the_step_that_is_not_masked(host, guest, engine, name):
    left, right, unmasked = DOT_PRODUCTS[name]
    case = Generator(Random(SEED), 64).case(Code.DPPS_XMM_XMMM128_IMM8)
    case.code, case.note = bytes([0x66, 0x0F, 0x3A, 0x40, 0xC1, 0xFF]), "dpps xmm0,xmm1,0FFh"
    for number, values in enumerate((left, right)):
        case.state.fpu.xmm[number] = int.from_bytes(struct.pack("<4f", *values), "little")
    case.state.fpu.mxcsr = MASKED & ~unmasked
    (expected,) = host.run([case])
    if engine.name != "kvm" or expected.vector is None:
        assert not differences(case, expected, guest.run_one(case))
