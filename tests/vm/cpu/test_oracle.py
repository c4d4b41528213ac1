"""The tools that say what is right: the host's processor, and the cases for it."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.tools.cpu_compare import describe, differences
from tests.tools.cpu_state import ARENA, CODE, READ_ONLY, WINDOW, ZF, Case, State
from tests.tools.host_cpu import HostCpu
from tests.tools.x86_cases import Generator
from tests.tools.x86_codes import CODE_NAMES, codes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not HostCpu.available(), reason="the host is the truth only where it is an x86-64 Linux"
)

RSP = 4
NAMES = ("rax", "rcx", "rdx", "rbx")


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    with HostCpu() as cpu:
        yield cpu


def case(code: str, mode: int = 64, **gprs: int) -> Case:
    base = 0 if mode == 16 else ARENA
    state = State()
    state.registers.rip = base + CODE
    state.registers.gprs[RSP] = base + WINDOW + 0x400
    for name, value in gprs.items():
        state.registers.gprs[NAMES.index(name)] = value
    return Case(bytes.fromhex(code), state, mode)


def test_an_instruction_changes_registers_and_flags(host):
    outcome = host.run([case("48 29 c8", rax=5, rcx=5)])[0]  # sub rax, rcx
    assert outcome.vector is None
    assert outcome.state.registers.gprs[0] == 0
    assert outcome.state.registers.rflags & ZF
    assert outcome.state.registers.rip == ARENA + CODE + 3


@pytest.mark.parametrize(
    ("code", "mode", "vector", "error_code", "address"),
    [
        ("f7 f1", 64, 0, 0, 0),  # div ecx
        ("f1", 64, 1, 0, 0),
        ("cc", 64, 3, 0, 0),
        ("0f 0b", 64, 6, 0, 0),  # ud2
        ("f4", 64, 13, 0, 0),  # hlt
        ("89 04 25 00 c0 00 70", 64, 14, 7, ARENA + READ_ONLY),
        ("8b 04 25 00 40 00 70", 64, 14, 4, ARENA + 0x4000),
        ("48 a1 00 00 00 00 00 00 00 80", 64, 13, 0, 0),  # not canonical
        ("ce", 32, None, 0, 0),  # into
        ("62 03", 32, 14, 4, 0),  # bound eax, [ebx]
        ("8b 0e ff ff", 16, 13, 0, 0),  # mov cx, [ffff]: the limit of the segment
        ("36 8b 0e ff ff", 16, 12, 0, 0),
    ],
)
def test_faults_are_outcomes(host, code, mode, vector, error_code, address):
    outcome = host.run([case(code, mode)])[0]
    assert (outcome.vector, outcome.address) == (vector, address)
    assert outcome.error_code == error_code


def test_what_does_not_end_is_given_up(host):
    looping, after = host.run([case("eb fe"), case("90")])
    assert looping.timed_out
    assert after.vector is None
    assert not after.timed_out


def test_cases_do_not_see_each_other(host):
    cases = [case("48 ff c0", rax=n) for n in range(3000)]  # more than a batch
    assert [o.state.registers.gprs[0] for o in host.run(cases)] == list(range(1, 3001))


def test_differences_are_found_and_named(host):
    one, other = host.run([case("48 ff c0", rax=1), case("48 ff c0", rax=2)])
    assert differences(case("48 ff c0"), one, one) == []
    found = differences(case("48 ff c0"), one, other)
    assert found[0] == "rax 0x3, should be 0x2"
    assert len(found) == 2  # and the parity flag


@pytest.mark.parametrize("mode", [64, 32, 16])
def test_every_code_gives_cases_that_end_alike_each_time(host, mode):
    generator = Generator(Random(mode), mode)
    cases = [generator.case(code) for code in codes(mode) for _ in range(2)]
    first, second = host.run(cases), host.run(cases)
    for made, once, twice in zip(cases, first, second, strict=True):
        assert not once.timed_out, describe(made)
        assert once == twice, describe(made)


@pytest.mark.parametrize("mode", [64, 32, 16])
def test_most_cases_do_what_their_instruction_is_for(host, mode):
    generator, chosen = Generator(Random(7), mode), codes(mode)
    cases = [generator.case(code) for code in chosen]
    ended = sum(outcome.vector is None for outcome in host.run(cases))
    assert ended > 0.8 * len(cases)


def test_the_generator_is_repeatable():
    chosen = codes(64)[::40]
    one, other = Generator(Random(3)), Generator(Random(3))
    assert [one.case(code) for code in chosen] == [other.case(code) for code in chosen]


def test_codes_cover_the_instruction_set():
    names = {CODE_NAMES[code] for code in codes(64)}
    wanted = {
        *("ADD_RM8_R8", "VEX_PEXT_R64_R64_RM64", "CMPXCHG16B_M128", "FYL2X", "PADDB_MM_MMM64"),
        *("MULSD_XMM_XMMM64", "PCMPISTRI_XMM_XMMM128_IMM8", "AESENC_XMM_XMMM128", "MOVBE_R16_M16"),
    }
    assert wanted <= names
    assert "CPUID" not in names
    assert "DAA" in {CODE_NAMES[code] for code in codes(32)}
