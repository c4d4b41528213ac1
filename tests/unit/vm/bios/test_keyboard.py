"""int 16h and int 09h: from scan codes to words."""

from __future__ import annotations

import pytest

from tests.tools.bios_machine import BiosMachine

SHIFT, CTRL, ALT, CAPS, NUM = 0x2A, 0x1D, 0x38, 0x3A, 0x45
E0 = 0xE0
RELEASE = 0x80


@pytest.fixture
def pc() -> BiosMachine:
    machine = BiosMachine()
    machine.post()
    return machine


def taken(pc: BiosMachine, function: int = 0x10) -> list[int]:
    """Every word in the buffer."""
    words = []
    while True:
        answer = pc.interrupt(0x16, ax=function << 8)
        if answer.waits:
            return words
        words.append(answer.ax)


def test_an_empty_buffer_waits(pc: BiosMachine) -> None:
    answer = pc.interrupt(0x16, ax=0)
    assert answer.waits and answer.ax == 0
    pc.type(0x1E)
    assert pc.interrupt(0x16, ax=0).ax == 0x1E61


def test_peeking_takes_nothing(pc: BiosMachine) -> None:
    assert pc.interrupt(0x16, ax=0x0100).zero
    pc.type(0x1E)
    for _ in range(2):
        answer = pc.interrupt(0x16, ax=0x0100)
        assert not answer.zero and answer.ax == 0x1E61
    assert taken(pc) == [0x1E61]


@pytest.mark.parametrize(
    ("codes", "word"),
    [
        ((0x1E,), 0x1E61),
        ((SHIFT, 0x1E), 0x1E41),
        ((CTRL, 0x1E), 0x1E01),
        ((ALT, 0x1E), 0x1E00),
        ((CAPS, CAPS | RELEASE, 0x1E), 0x1E41),
        ((CAPS, CAPS | RELEASE, SHIFT, 0x1E), 0x1E61),
        ((CAPS, CAPS | RELEASE, 0x02), 0x0231),
        ((0x3B,), 0x3B00),
        ((SHIFT, 0x3B), 0x5400),
        ((0x57,), 0x8500),
        ((0x48,), 0x4800),
        ((NUM, NUM | RELEASE, 0x48), 0x4838),
        ((E0, 0x48), 0x48E0),
        ((NUM, NUM | RELEASE, E0, 0x48), 0x48E0),
        ((E0, 0x1C), 0xE00D),
        ((E0, CTRL, E0, 0x48), 0x8DE0),
        ((SHIFT, SHIFT | RELEASE, 0x1E), 0x1E61),
        ((E0, 0x2A, E0, 0x52), 0x52E0),  # a grey key's own shift means nothing
    ],
)
def test_words(pc: BiosMachine, codes: tuple[int, ...], word: int) -> None:
    pc.type(*codes)
    assert taken(pc) == [word]


def test_old_functions_give_what_old_keyboards_have(pc: BiosMachine) -> None:
    pc.type(E0, 0x48, 0x57, E0, 0x1C, E0, 0x35)
    assert taken(pc, 0x00) == [0x4800, 0x1C0D, 0x352F]


def test_alt_and_digits_compose_a_character(pc: BiosMachine) -> None:
    pc.type(ALT, 0x4F, 0x51, 0x48, ALT | RELEASE)
    assert taken(pc) == [138]


def test_the_buffer_holds_fifteen_words(pc: BiosMachine) -> None:
    pc.type(*[0x1E] * 20)
    assert len(taken(pc)) == 15
    assert pc.interrupt(0x16, ax=0x0500, cx=0x1234).al == 0
    assert taken(pc) == [0x1234]
    for _ in range(15):
        pc.interrupt(0x16, ax=0x0500, cx=1)
    assert pc.interrupt(0x16, ax=0x0500, cx=1).al == 1


def test_shift_flags(pc: BiosMachine) -> None:
    pc.type(SHIFT, E0, ALT, CTRL)
    assert pc.interrupt(0x16, ax=0x0200).al == 0x02 | 0x08 | 0x04
    extended = pc.interrupt(0x16, ax=0x1200)
    assert extended.al == 0x0E and extended.ah == 0x08 | 0x01
    pc.type(E0, ALT | RELEASE, CTRL | RELEASE, SHIFT | RELEASE)
    assert pc.interrupt(0x16, ax=0x1200).ax == 0


def test_a_lock_does_not_repeat(pc: BiosMachine) -> None:
    pc.type(CAPS, CAPS, CAPS, CAPS | RELEASE)
    assert pc.interrupt(0x16, ax=0x0200).al == 0x40


def test_ctrl_break_empties_the_buffer_and_calls_1bh(pc: BiosMachine) -> None:
    pc.type(0x1E, 0x1E, CTRL, E0)
    assert pc.trap("scan_code", ax=0x46).al == 0x1B
    assert pc.memory.read(0x471, 1) == b"\x80"
    assert taken(pc) == [0]


def test_pause_waits_for_a_key(pc: BiosMachine) -> None:
    pc.type(0xE1, 0x1D)
    assert pc.trap("scan_code", ax=0x45).al == 0x13
    pc.type(0xE1, 0x9D, 0xC5)
    assert pc.memory.read(0x418, 1)[0] & 8
    pc.type(0x1E)
    assert not pc.memory.read(0x418, 1)[0] & 8
    assert taken(pc) == []


def test_print_screen(pc: BiosMachine) -> None:
    pc.type(E0, 0x2A, E0)
    assert pc.trap("scan_code", ax=0x37).al == 0x05


def test_ctrl_alt_del_resets(pc: BiosMachine) -> None:
    pc.type(CTRL, ALT, 0x53)
    assert pc.log == ["reset"] and pc.word(0x472) == 0x1234


def test_answers_of_the_keyboard_are_no_keys(pc: BiosMachine) -> None:
    pc.type(0xFA, 0xFE)
    assert taken(pc) == []


def test_a_program_may_move_the_buffer(pc: BiosMachine) -> None:
    for offset, value in ((0x80, 0x200), (0x82, 0x220), (0x1A, 0x200), (0x1C, 0x200)):
        pc.memory.write(0x400 + offset, value.to_bytes(2, "little"))
    pc.type(*[0x1E] * 20)
    assert len(taken(pc)) == 15


def test_the_callers_carry_does_not_make_the_rom_wait(pc: BiosMachine) -> None:
    answer = pc.trap("keyboard", flags=3, ax=0x0200)
    assert not answer.waits
