"""Forms: an instruction is what it would be if it were the first that is ever lowered."""

from __future__ import annotations

import random

import iced_x86 as iced
import pytest

from vdisk.vm.cpu import decoder as decoder_module
from vdisk.vm.cpu.decode import FLAT_MODE, Mode
from vdisk.vm.cpu.decoder import PLACES, Decoder
from vdisk.vm.cpu.known import LONGEST, Parameter
from vdisk.vm.cpu.semantics import load_all

LONG = Mode(64, 64, checked=False)
MODES = [
    *(LONG, FLAT_MODE, Mode(32, 32, checked=True), Mode(16, 16, checked=True)),
    *(Mode(64, 64, checked=False, step=True), Mode(64, 64, checked=False, aligned=True)),
]
PREFIXES = [
    b"",
    b"",
    b"",
    b"\x66",
    b"\x67",
    b"\xf0",
    b"\xf2",
    b"\xf3",
    b"\x64",
    b"\x2e",
    b"\x66\x67",
]
REX = [b"", b"\x48", b"\x41", b"\x4c", b"\x43"]
MAPS = [b"", b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"]
TAILS = [bytes(12), b"\xff" * 12, b"\x04\x25" + bytes(10), b"\x05" + b"\xff\xff\xff\x7f" * 3]


@pytest.fixture(autouse=True)
def tables():
    load_all()


def encodings(mode, count, chance):
    """Whole instructions: each opcode with all prefixes comes again and again."""
    found = set()
    while len(found) < count:
        rex = chance.choice(REX) if mode.code == 64 else b""
        opcode = chance.choice(MAPS) + bytes([chance.randrange(256)])
        tail = chance.choice([chance.randbytes(12), chance.choice(TAILS)])
        code = (chance.choice(PREFIXES) + rex + opcode + tail)[:LONGEST]
        decoder = iced.Decoder(mode.code, code)
        instruction = decoder.decode()
        if not instruction.is_invalid or decoder.last_error != iced.DecoderError.NO_MORE_BYTES:
            found.add(code[: instruction.len])
    return found


def facts(decoder, code):
    """All that matters of an instruction."""
    decoded = decoder.lowered(code)
    form = decoded.form
    return decoded.ops, decoded.length, form.name, form.entry, form.placed, form.links


@pytest.mark.parametrize("mode", MODES)
def test_a_form_that_is_remembered_is_what_lowering_afresh_gives(mode):
    chance = random.Random(mode.code)
    experienced = Decoder(mode)
    for code in encodings(mode, 5000, chance):
        assert facts(experienced, code) == facts(Decoder(mode), code), code.hex()


@pytest.mark.parametrize("mode", MODES)
def test_a_field_is_the_number_that_stands_at_the_end(mode):
    """Whatever number that is: everything else stays as it was."""
    chance = random.Random(mode.code)
    decoder, fields = Decoder(mode), 0
    for code in encodings(mode, 3000, chance):
        instruction = iced.Decoder(mode.code, code).decode()
        form = decoder.form(code, instruction)
        found = decoder.field(code, instruction, form) if len(code) > 4 else None
        if found is None:
            continue
        fields += 1
        addends, others = set(), []
        for number in (0, -1, chance.randrange(-(1 << 30), 1 << 30)):
            changed = code[:-4] + number.to_bytes(4, "little", signed=True)
            instruction = iced.Decoder(mode.code, changed).decode()
            assert decoder.form(changed, instruction) is form
            values = [pattern.values(instruction) for pattern in form.patterns]
            parameter, op = found
            addends.add(values[op].pop(PLACES[parameter]) - number)
            others.append(values)
        assert len(addends) == 1
        assert others[0] == others[1] == others[2]
    assert fields > 100


def test_instructions_that_differ_in_registers_and_numbers_have_one_form():
    decoder = Decoder(LONG)
    for alike in (
        ["4889d8", "4889ca", "4d89fe"],  # mov of 64-bit registers
        ["8b03", "8b4b10", "418b8c2478563412"],  # mov from memory without an index
        ["0f8400000000", "0f8478563412"],
        ["83c001", "83c37f"],
    ):
        forms = {id(decoder.lowered(bytes.fromhex(code)).form) for code in alike}
        assert len(forms) == 1, alike
    for different in (["4889d8", "488918"], ["31c0", "31c8"], ["c1e000", "c1e001"]):
        forms = {id(decoder.lowered(bytes.fromhex(code)).form) for code in different}
        assert len(forms) == 2, different


def test_forms_do_not_become_ever_more(monkeypatch):
    monkeypatch.setattr(decoder_module, "MOST_FORMS", 20)
    decoder = Decoder(LONG)
    for immediate in range(256):  # each makes another form
        pshufd = decoder.lowered(b"\x66\x0f\x70\xc1" + bytes([immediate]))
        assert pshufd.ops == Decoder(LONG).lowered(b"\x66\x0f\x70\xc1" + bytes([immediate])).ops
    assert len(decoder._forms) <= 20


def test_an_instruction_that_is_too_long_is_no_undefined_one():
    decoder = Decoder(LONG)
    short, long = (decoder.lowered(code) for code in (b"\x0f\xff"[:1] + b"\x04", b"\x66" * 15))
    assert [each.form.name for each in (short, long)] == ["undefined", "undefined"]
    assert [each.ops[0].shape.variant for each in (short, long)] == [0, 13]


def test_what_is_almost_2_gib_away_is_addressed_through_a_temporary():
    """mov eax, [rip+7FFFFFFFh]: behind the page's place it would not fit into a record."""
    decoder = Decoder(LONG)
    near, far = (
        decoder.lowered(b"\x8b\x05" + number.to_bytes(4, "little"))
        for number in (0x7FFF_0000, 0x7FFF_FFFF)
    )
    assert [op.shape.operation for op in near.ops] == ["mov"]
    assert [op.shape.operation for op in far.ops] == ["mov_wide", "mov"]
    wide, mov = far.ops
    assert wide.wide == 0x7FFF_FFFF + 6
    assert (mov.index, mov.disp, mov.rip_relative) == (wide.r0, 0, True)
    assert Parameter.DISP not in (far.form.open.get(8) or ())
