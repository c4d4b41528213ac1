"""The assembler, and the ROM that it makes: every instruction is what the disassembler reads."""

from __future__ import annotations

import iced_x86
import pytest

from vdisk.vm._bios import rom
from vdisk.vm._bios.assembler import Assembler, AssemblyError

PROGRAM = rom.build()


def assemble(source: str) -> bytes:
    program = Assembler(0, 64, rom.TRAP_PORT).assemble(source)
    return bytes(program.code)


def disassembled(offset: int, code: bytes) -> str:
    decoder = iced_x86.Decoder(16, code, ip=offset)
    instruction = decoder.decode()
    assert instruction.len == len(code), f"{offset:#x}: {code.hex()}"
    formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.NASM)
    formatter.hex_prefix, formatter.hex_suffix = "0x", ""
    formatter.space_after_operand_separator = True
    formatter.show_branch_size = False
    formatter.uppercase_hex = False
    formatter.branch_leading_zeros = False
    return formatter.format(instruction)


ALIASES = {"jc": "jb", "jnc": "jae", "jz": "je", "jnz": "jne"}


def normalized(line: str, labels: dict[str, int]) -> str:
    """Source in the words of the disassembler."""
    words = []
    for word in line.replace(",", " ,").split():
        bare = word.strip("[]")
        if ":" in bare:
            segment, label = bare.split(":")
            value = f"{int(segment, 0):#x}:{labels[label]:#x}"
        elif bare in labels:
            value = f"{labels[bare]:#x}"
        elif bare[0].isdigit():
            value = hex(int(bare, 0)) if int(bare, 0) > 9 else str(int(bare, 0))
        else:
            value = ALIASES.get(bare, bare)
        words.append(word.replace(bare, value))
    return " ".join(words).replace(" ,", ",")


def test_every_instruction_of_the_rom_is_what_the_source_says() -> None:
    program = Assembler(rom.CODE, rom.ROM_SIZE, rom.TRAP_PORT).assemble(rom.SOURCE)
    assert len(program.listing) > 100
    for offset, length, line in program.listing:
        start = offset - program.start
        code = bytes(program.code[start : start + length])
        if line.startswith("trap "):
            assert code == bytes([0xE6, rom.TRAP_PORT])
            continue
        shown = disassembled(offset, code)
        for plain in ("byte ", "word ", "dword "):
            if plain.strip() not in line:
                shown = shown.replace(plain, "")
        assert shown == normalized(line, program.labels), f"{offset:#x}"


def test_entry_points_are_where_programs_jump_to() -> None:
    fixed = {
        "post": 0xE05B,
        "configuration": 0xE6F5,
        "baud_rates": 0xE729,
        "serial": 0xE739,
        "keyboard": 0xE82E,
        "irq_keyboard": 0xE987,
        "diskette_parameters": 0xEFC7,
        "printer": 0xEFD2,
        "video": 0xF065,
        "memory_size": 0xF841,
        "equipment": 0xF84D,
        "system": 0xF859,
        "time_of_day": 0xFE6E,
        "irq_timer": 0xFEA5,
        "print_screen": 0xFF54,
    }
    assert {name: PROGRAM.labels[name] for name in fixed} == fixed


def test_the_processor_starts_at_post() -> None:
    assert bytes(PROGRAM.image[0xFFF0:0xFFF5]) == b"\xea\x5b\xe0\x00\xf0"


def test_the_rom_sums_to_zero_and_says_it_is_an_at() -> None:
    assert sum(PROGRAM.image) & 0xFF == 0
    assert PROGRAM.image[0xFFFE] == 0xFC


def test_every_vector_leads_somewhere() -> None:
    assert set(rom.VECTORS.values()) <= PROGRAM.labels.keys()


def test_every_trap_has_a_name_of_its_own() -> None:
    names = list(PROGRAM.traps.values())
    assert len(names) == len(set(names))


@pytest.mark.parametrize("source", ["fly", "mov ax, nowhere", "org 2\norg 1", "jc nowhere"])
def test_what_means_nothing_is_refused(source: str) -> None:
    with pytest.raises(AssemblyError):
        assemble(source)


def test_jumps_go_both_ways() -> None:
    assert assemble("back:\nnop\njc back\njmp on\nnop\non:\nnop")[:8].hex() == "9072fde901009090"
