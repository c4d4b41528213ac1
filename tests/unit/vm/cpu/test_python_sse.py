"""SSE in the reference interpreter: vectors that standards publish, answers that manuals give."""

from __future__ import annotations

import pytest

from vdisk.vm.cpu.python_sse import sse, sse_blend, sse_flags, sse_string
from vdisk.vm.cpu.python_sse_crypto import INVERSE_S_BOX, S_BOX
from vdisk.vm.cpu.state import CpuState

CF, ZF, SF, OF = 1, 0x40, 0x80, 0x800
MASKED = 0x1F80
ONE, TWO, INFINITY = 0x3F80_0000, 0x4000_0000, 0x7F80_0000
EQUAL_ANY, RANGES, EQUAL_EACH, EQUAL_ORDERED = 0, 4, 8, 12
LAST, NEGATED = 0x40, 0x10


@pytest.fixture
def cpu() -> CpuState:
    made = CpuState()
    made.mxcsr = MASKED
    return made


def number(text: str) -> int:
    """Sixteen bytes, as FIPS 197 writes them."""
    return int.from_bytes(bytes.fromhex(text), "little")


def text(string: str) -> int:
    return int.from_bytes(string.encode().ljust(16, b"\0"), "little")


def expand(key: int, rounds: int, cpu: CpuState) -> list[int]:
    """The key schedule of AES-128, by AESKEYGENASSIST."""
    keys, constant = [key], 1
    for _ in range(rounds):
        assist = sse("aeskeygenassist", cpu.view, 0, keys[-1], constant) >> 96
        words, word = [], assist
        for n in range(4):
            word ^= keys[-1] >> 32 * n & 0xFFFF_FFFF
            words.append(word)
        keys.append(sum(word << 32 * n for n, word in enumerate(words)))
        constant = constant << 1 ^ (0x11B if constant & 0x80 else 0)
    return keys


def test_aes_encrypts_what_fips_197_does(cpu):
    keys = expand(number("000102030405060708090a0b0c0d0e0f"), 10, cpu)
    state = number("00112233445566778899aabbccddeeff") ^ keys[0]
    for key in keys[1:-1]:
        state = sse("aesenc", cpu.view, state, key, None)
    state = sse("aesenclast", cpu.view, state, keys[-1], None)
    assert state == number("69c4e0d86a7b0430d8cdb78070b4c55a")
    state ^= keys[-1]
    for key in keys[-2:0:-1]:
        mixed = sse("aesimc", cpu.view, 0, key, None)
        state = sse("aesdec", cpu.view, state, mixed, None)
    state = sse("aesdeclast", cpu.view, state, keys[0], None)
    assert state == number("00112233445566778899aabbccddeeff")


def test_the_boxes_of_aes_are_inverse():
    assert S_BOX[:4] == bytes.fromhex("637c777b")
    assert all(INVERSE_S_BOX[S_BOX[value]] == value for value in range(256))


def test_a_carryless_product(cpu):
    a, b = 0x7B5B_5465_7374_5665 << 64, 0x4869_2853_6861_7929
    product = sse("pclmulqdq", cpu.view, a, b, 0x01)
    wanted = 0
    for bit in range(64):
        if b >> bit & 1:
            wanted ^= (a >> 64) << bit
    assert product == wanted


@pytest.mark.parametrize(
    ("immediate", "needle", "haystack", "index"),
    [
        (EQUAL_ANY, "aeiou", "rhythm and blues", 7),
        (EQUAL_ANY | LAST, "aeiou", "rhythm and blues", 14),
        (EQUAL_ANY | NEGATED, "abc", "abcxabc", 3),
        (RANGES, "09", "room 101", 5),
        (EQUAL_EACH | NEGATED, "same until here", "same until there", 11),
        (EQUAL_ORDERED, "need", "a needle", 2),
        (EQUAL_ORDERED, "end", "the text's own e", 15),
        (EQUAL_ORDERED, "xyz", "nothing", 16),
    ],
)
def test_strings(immediate, needle, haystack, index):
    found, flags = sse_string("pcmpistri", immediate, text(needle), text(haystack), 0, 0)
    assert found == index
    assert bool(flags & CF) == (index < 16)
    assert bool(flags & ZF) == (len(haystack) < 16)
    assert bool(flags & SF) == (len(needle) < 16)


def test_explicit_lengths_count_zeroes_and_are_clamped():
    found, flags = sse_string("pcmpestrm", EQUAL_EACH, 0, 0, 3, -100 & 0xFFFF_FFFF)
    assert found == 0b111
    assert flags == CF | SF | OF


def test_division_by_zero_leaves_a_flag(cpu):
    assert sse("divps", cpu.view, ONE, 0, None) & 0xFFFF_FFFF == INFINITY
    assert cpu.mxcsr & 0x3F == 4 | 1  # lanes 1-3: 0 / 0


def test_a_scalar_keeps_the_other_lanes(cpu):
    assert sse("addss", cpu.view, 7 << 32 | ONE, 9 << 32 | ONE, None) == 7 << 32 | TWO


def test_minima_take_the_second_of_two_zeroes(cpu):
    assert sse("minss", cpu.view, 0, 1 << 31, None) == 1 << 31
    assert sse("minss", cpu.view, 1 << 31, 0, None) == 0


def test_shifts_beyond_the_width(cpu):
    assert sse("psllw", cpu.view, 0xFFFF, 16, None) == 0
    assert sse("psraw", cpu.view, 0x8000, 1 << 40, None) == 0xFFFF
    assert sse("psrldq", cpu.view, 1 << 127, 200, None) == 0


def test_a_blend_looks_at_signs():
    assert sse_blend("blendvps", 0, (1 << 128) - 1, 1 << 63) == 0xFFFF_FFFF << 32


def test_ptest(cpu):
    assert sse_flags("ptest", cpu.view, 0b1100, 0b0011) == ZF
    assert sse_flags("ptest", cpu.view, 0b1111, 0b0011) == CF
