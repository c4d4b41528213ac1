"""A small assembler for 16-bit code: the instructions that the ROM is made of, and no others.

Source is text, one statement a line, in Intel's syntax (SDM volume 2 has the encodings)::

    label:                      a name for this offset
    org 0xFFF0                  continue at this offset
    db 1, 2 / dw label, 5       data
    trap NAME                   out TRAP_PORT, al - and NAME is noted for this place
    jc label                    jumps are short, ``jmp`` and ``call`` near

A comment begins with ``;``.  Offsets count from the start of the segment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Encoder = Callable[["Assembler", re.Match[str]], bytes]

WORDS = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
BYTES = ("al", "cl", "dl", "bl", "ah", "ch", "dh", "bh")
PLAIN = {
    "iret": "cf",
    "retf": "cb",
    "ret": "c3",
    "hlt": "f4",
    "nop": "90",
    "pusha": "60",
    "popa": "61",
    "cli": "fa",
    "sti": "fb",
    "cld": "fc",
    "stc": "f9",
    "clc": "f8",
    "push es": "06",
    "push ss": "16",
    "push ds": "1e",
    "pop es": "07",
    "pop ds": "1f",
    "pushf": "9c",
    "popf": "9d",
    "push fs": "0fa0",
    "pop fs": "0fa1",
    "pushad": "6660",
    "popad": "6661",
    "mov al, ah": "88e0",
    "xor ax, ax": "31c0",
    "xor al, al": "30c0",
}
SEGMENTS = ("es", "cs", "ss", "ds")
CONDITIONS = {
    "jc": 0x72,
    "jb": 0x72,
    "jnc": 0x73,
    "jae": 0x73,
    "loop": 0xE2,
    "je": 0x74,
    "jz": 0x74,
    "jne": 0x75,
    "jnz": 0x75,
    "js": 0x78,
    "jns": 0x79,
}


class AssemblyError(ValueError):
    """The source has a line that means nothing: a mistake in this package."""


@dataclass
class Program:
    """What came out: ``code`` from offset ``start`` on, labels, and the place of each trap.

    ``traps``: from the offset of the trapping instruction to the name it was given.
    ``listing``: (offset, length, source) of every instruction.
    """

    start: int
    code: bytearray
    labels: dict[str, int] = field(default_factory=dict)
    traps: dict[int, str] = field(default_factory=dict)
    listing: list[tuple[int, int, str]] = field(default_factory=list)


class Assembler:
    """Turns source into a :class:`Program` in two passes: sizes never depend on labels."""

    def __init__(self, start: int, end: int, trap_port: int) -> None:
        self.program = Program(start, bytearray(end - start))
        self.trap_port = trap_port
        self.offset = start
        self.last_pass = False

    def assemble(self, source: str) -> Program:
        """Assemble ``source``; raises :class:`AssemblyError` with the line."""
        for self.last_pass in (False, True):
            self.offset = self.program.start
            for text in source.splitlines():
                line = " ".join(text.partition(";")[0].split())
                if line:
                    self._line(line)
        return self.program

    def _line(self, line: str) -> None:
        if line.endswith(":"):
            self.program.labels[line[:-1]] = self.offset
            return
        if line.startswith("org "):
            target = int(line[4:], 0)
            if target < self.offset:
                raise AssemblyError(f"{line}: {self.offset - target} bytes too late")
            self.offset = target
            return
        code = self._encode(line)
        if self.last_pass:
            place = self.offset - self.program.start
            self.program.code[place : place + len(code)] = code
            if not line.startswith(("db", "dw")):
                self.program.listing.append((self.offset, len(code), line))
        self.offset += len(code)

    def _encode(self, line: str) -> bytes:
        if line in PLAIN:
            return bytes.fromhex(PLAIN[line])
        for pattern, encoder in ENCODERS:
            if found := pattern.fullmatch(line):
                return encoder(self, found)
        raise AssemblyError(f"what is {line!r}?")

    def value(self, text: str, size: int) -> bytes:
        """A number or a label as ``size`` bytes."""
        if text[0].isdigit():
            number = int(text, 0)
        elif self.last_pass and text not in self.program.labels:
            raise AssemblyError(f"no label {text}")
        else:
            number = self.program.labels.get(text, 0)
        return number.to_bytes(size, "little")

    def distance(self, text: str, length: int, size: int) -> bytes:
        """How far ``text`` is from the end of an instruction of ``length`` bytes."""
        if not self.last_pass:
            return bytes(size)
        target = int.from_bytes(self.value(text, 2), "little")
        return (target - self.offset - length).to_bytes(size, "little", signed=True)

    def trap(self, found: re.Match[str]) -> bytes:
        self.program.traps[self.offset] = found[1]
        return bytes([0xE6, self.trap_port])

    def jump(self, opcode: int, found: re.Match[str]) -> bytes:
        return bytes([opcode]) + self.distance(found[1], 3, 2)

    def short(self, found: re.Match[str]) -> bytes:
        return bytes([CONDITIONS[found[1]]]) + self.distance(found[2], 2, 1)

    def data(self, size: int, found: re.Match[str]) -> bytes:
        return b"".join(self.value(word.strip(), size) for word in found[1].split(","))


def _memory(opcode: int, reg: int, size: int, prefix: bytes = b"") -> Encoder:
    """An instruction on ``[disp16]`` with an immediate of ``size`` bytes, if any."""

    def encode(assembler: Assembler, found: re.Match[str]) -> bytes:
        start = prefix + bytes([opcode, 0x06 | reg << 3]) + assembler.value(found[1], 2)
        return start + (assembler.value(found[2], size) if size else b"")

    return encode


def _immediate(opcode: int, names: tuple[str, ...], size: int) -> Encoder:
    return lambda assembler, found: (
        bytes([opcode + names.index(found[1])]) + assembler.value(found[2], size)
    )


def _one_byte(*opcodes: int) -> Encoder:
    return lambda assembler, found: bytes(opcodes) + assembler.value(found[1], 1)


_WORD, _BYTE = "|".join(WORDS), "|".join(BYTES)
_TARGET, _ADDRESS = r"([\w.]+)", r"\[(\w+)\]"
_SOURCES: list[tuple[str, Encoder]] = [
    (r"trap (\w+)", Assembler.trap),
    (rf"jmp {_TARGET}", lambda a, found: a.jump(0xE9, found)),
    (rf"call {_TARGET}", lambda a, found: a.jump(0xE8, found)),
    (rf"jmp (\w+):{_TARGET}", lambda a, m: b"\xea" + a.value(m[2], 2) + a.value(m[1], 2)),
    (rf"({'|'.join(CONDITIONS)}) {_TARGET}", Assembler.short),
    (r"db (.+)", lambda a, found: a.data(1, found)),
    (r"dw (.+)", lambda a, found: a.data(2, found)),
    (r"int (\w+)", _one_byte(0xCD)),
    (r"in al, (\w+)", _one_byte(0xE4)),
    (r"out (\w+), al", _one_byte(0xE6)),
    (r"cmp al, (\w+)", _one_byte(0x3C)),
    (r"add sp, (\w+)", _one_byte(0x83, 0xC4)),
    (rf"mov ({_WORD}), (\w+)", _immediate(0xB8, WORDS, 2)),
    (rf"mov ({_BYTE}), (\w+)", _immediate(0xB0, BYTES, 1)),
    (r"mov (es|ss|ds), ax", lambda _, m: bytes([0x8E, 0xC0 | SEGMENTS.index(m[1]) << 3])),
    (rf"push ({_WORD})", lambda _, m: bytes([0x50 + WORDS.index(m[1])])),
    (rf"pop ({_WORD})", lambda _, m: bytes([0x58 + WORDS.index(m[1])])),
    (rf"push word {_ADDRESS}", _memory(0xFF, 6, 0)),
    (r"push (\d+)", _one_byte(0x6A)),
    (rf"call far {_ADDRESS}", _memory(0xFF, 3, 0)),
    (rf"jmp far {_ADDRESS}", _memory(0xFF, 5, 0)),
    (rf"inc dword {_ADDRESS}", _memory(0xFF, 0, 0, b"\x66")),
    (rf"inc byte {_ADDRESS}", _memory(0xFE, 0, 0)),
    (rf"cmp dword {_ADDRESS}, (\w+)", _memory(0x81, 7, 4, b"\x66")),
    (rf"mov dword {_ADDRESS}, (\w+)", _memory(0xC7, 0, 4, b"\x66")),
    (rf"mov byte {_ADDRESS}, (\w+)", _memory(0xC6, 0, 1)),
    (rf"test byte {_ADDRESS}, (\w+)", _memory(0xF6, 0, 1)),
]
ENCODERS = [(re.compile(source), encoder) for source, encoder in _SOURCES]
