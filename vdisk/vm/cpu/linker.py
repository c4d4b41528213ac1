"""Object code made executable, without LLVM: a linker for what :mod:`~vdisk.vm.cpu.codegen` emits.

LLVM gives ELF-64 relocatable objects (System V gABI, chapter 4)::

    ELF header | .text | .rodata … | .rela.text … | .symtab | .strtab | section headers

Code is compiled position-independent and for the small code model, so what is left to be filled
in are 32-bit distances (R_X86_64_PC32 and PLT32: S + A - P, x86-64 psABI 4.4.1), and numbers that
are not known yet (R_X86_64_32S: S + A).  :func:`piece` lays the sections out one behind the other
and fills in what is known then: everything but what symbols of others are, a call of the run-time
or a handler's tail.  A :class:`Piece` is what the cache keeps; adding it to :class:`CodeMemory` is
a copy and a handful of additions, where LLVM's own linker takes a millisecond.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

CODE_MEMORY = 512 << 20
"""Address space for code: distances within it fit in 32 bits, and nothing is ever given back."""
ALIGNMENT = 64
"""Of each piece: no constant that LLVM makes for these hosts asks for more."""

_HEADER = Struct("<16sHHIQQQIHHHHHH")
_SECTION = Struct("<IIQQQQIIQQ")
_SYMBOL = Struct("<IBBHQQ")
_RELA = Struct("<QQq")
_PROGBITS, _SYMTAB, _RELA_TYPE, _NOBITS = 1, 2, 4, 8
_ALLOC = 2
_GLOBAL = 1
_PC32, _PLT32, _32S = 2, 4, 11
_SIGNED = Struct("<i")
_JUMP, _JUMP_CODE = Struct("<8sQ"), b"\xff\x25\2\0\0\0\0\0"
"""jmp *2(%rip): to the address behind it and two bytes more, which is a whole word of memory."""


class LinkError(Exception):
    """Object code of a kind that code generation never asks for."""


class Relocation(NamedTuple):
    """The 32 bits at ``offset`` become the distance from there to a symbol, plus ``addend``; or,
    where the ``kind`` is R_X86_64_32S, the symbol's value plus ``addend``."""

    offset: int
    addend: int
    symbol: str
    kind: int


_HEAD, _PLACE, _NEED = Struct("<III"), Struct("<I"), Struct("<IiIB")


class Piece(NamedTuple):
    """Position-independent code, the symbols in it, and what it needs of others."""

    code: bytes
    symbols: dict[str, int]
    relocations: list[Relocation]

    def pack(self) -> bytes:
        """As bytes, for :meth:`unpack`."""
        needed = list(dict.fromkeys(each.symbol for each in self.relocations))
        numbers = {name: number for number, name in enumerate(needed)}
        names = "\n".join([*self.symbols, *needed]).encode()
        return b"".join(
            [
                _HEAD.pack(len(self.symbols), len(self.relocations), len(names)),
                *(_PLACE.pack(offset) for offset in self.symbols.values()),
                *(
                    _NEED.pack(offset, addend, numbers[symbol], kind)
                    for offset, addend, symbol, kind in self.relocations
                ),
                names,
                self.code,
            ]
        )

    @classmethod
    def unpack(cls, data: bytes) -> Piece:
        """What :meth:`pack` gave."""
        symbols, relocations, length = _HEAD.unpack_from(data)
        needs = _HEAD.size + symbols * _PLACE.size
        text = needs + relocations * _NEED.size
        names = data[text : text + length].decode().split("\n")
        places = _PLACE.iter_unpack(data[_HEAD.size : needs])
        return cls(
            data[text + length :],
            {name: offset for name, (offset,) in zip(names, places, strict=False)},
            [
                Relocation(offset, addend, names[symbols + number], kind)
                for offset, addend, number, kind in _NEED.iter_unpack(data[needs:text])
            ],
        )


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


def piece(data: bytes) -> Piece:
    """Lay out an object file.  Raises :class:`LinkError`."""
    header = _HEADER.unpack_from(data)
    if header[0][:5] != b"\x7fELF\x02":
        raise LinkError("not an ELF-64 object")
    start, count = header[6], header[12]
    table = data[start : start + count * _SECTION.size]
    sections = [_Section(*fields) for fields in _SECTION.iter_unpack(table)]
    code, places = _lay_out(data, sections)
    names, known, exported = _symbols(data, sections, places)
    relocations: list[Relocation] = []
    for section in sections:
        if section.type == _RELA_TYPE and section.info in places:
            relocations += _resolve(data, section, code, places[section.info], names, known)
    return Piece(bytes(code), exported, relocations)


def _lay_out(data: bytes, sections: list[_Section]) -> tuple[bytearray, dict[int, int]]:
    """The sections that are needed at run time, and where each begins.

    Unwind tables are not: nothing unwinds generated code.
    """
    code, places = bytearray(), {}
    for number, section in enumerate(sections):
        if section.type not in {_PROGBITS, _NOBITS} or not section.flags & _ALLOC:
            continue
        code += bytes(-len(code) % max(section.align, 1))
        places[number] = len(code)
        is_there = section.type == _PROGBITS
        end = section.offset + section.size
        code += data[section.offset : end] if is_there else bytes(section.size)
    return code, places


def _symbols(
    data: bytes, sections: list[_Section], places: dict[int, int]
) -> tuple[list[str], list[int | None], dict[str, int]]:
    """The name of each symbol, its offset in the code (if it has one), and the global ones."""
    names: list[str] = []
    known: list[int | None] = []
    exported = {}
    for section in sections:
        if section.type != _SYMTAB:
            continue
        strings = sections[section.link]
        text = data[strings.offset : strings.offset + strings.size]
        table = data[section.offset : section.offset + section.size]
        for start, info, _, where, value, _ in _SYMBOL.iter_unpack(table):
            name = text[start : text.index(b"\0", start)].decode()
            names.append(name)
            known.append(None)
            if where in places:
                known[-1] = place = places[where] + value
                if info >> 4 == _GLOBAL:
                    exported[name] = place
    return names, known, exported


def _resolve(
    data: bytes,
    section: _Section,
    code: bytearray,
    base: int,
    names: list[str],
    known: list[int | None],
) -> list[Relocation]:
    """Fill in distances within the code; gives those that need a symbol of others."""
    left = []
    table = data[section.offset : section.offset + section.size]
    for offset, info, addend in _RELA.iter_unpack(table):
        kind, symbol, place = info & 0xFFFF_FFFF, info >> 32, base + offset
        target = known[symbol]
        if kind not in {_PC32, _PLT32} and (kind != _32S or target is not None):
            raise LinkError(f"relocation of type {kind}")
        if target is None:
            if not names[symbol]:
                raise LinkError("a relocation to nothing")
            left.append(Relocation(place, addend, names[symbol], kind))
        else:
            _SIGNED.pack_into(code, place, target + addend - place)
    return left


def _fill(code: bytearray, offset: int, number: int) -> None:
    try:
        _SIGNED.pack_into(code, offset, number)
    except StructError as problem:
        raise LinkError(f"{number:#x} does not fit: {problem}") from None


class CodeFullError(Exception):
    """No room for more code."""


class CodeMemory:
    """Executable memory, written at one address and executed at another.

    The two mappings are of one anonymous file, so nothing is ever writable and executable at the
    same address, and code can be added while other threads execute what is there.
    """

    def __init__(self, external: Callable[[str], int], size: int = CODE_MEMORY) -> None:
        """``external``: the address of a function of the host's C library, by its name."""
        self._external = external
        self.size, self.used = size, 0
        self._lock = threading.Lock()
        self.symbols: dict[str, int] = {}
        """Addresses that relocations may name: the run-time's, and ways to the C library."""
        descriptor = os.memfd_create("vdisk-code", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            self._view = mmap.mmap(descriptor, size, mmap.MAP_SHARED)
            self._words = memoryview(self._view).cast("Q")
            self.address = _map_executable(descriptor, size)
        finally:
            os.close(descriptor)

    def add(self, added: Piece, reserved: int = 0, numbers: dict[str, int] | None = None) -> int:
        """Put code in place; the address of its beginning.

        ``numbers``: values of symbols that are numbers.  Raises :class:`CodeFullError` if less than
        ``reserved`` bytes would be left, :class:`LinkError` if a number does not fit.
        """
        with self._lock:
            if self.used + len(added.code) > self.size - reserved:
                raise CodeFullError
            filled = bytearray(added.code)
            for offset, addend, symbol, kind in added.relocations:
                if kind == _32S:
                    _fill(filled, offset, (numbers or {})[symbol] + addend)
            needs = [
                (offset, self._address(symbol) + addend)
                for offset, addend, symbol, kind in added.relocations
                if kind != _32S
            ]
            start = self.used
            for offset, target in needs:
                _SIGNED.pack_into(filled, offset, target - (self.address + start + offset))
            return self.address + self._append(bytes(filled))

    def _append(self, code: bytes) -> int:
        start, end = self.used, self.used + len(code)
        if end > self.size:
            raise CodeFullError
        self._view[start:end] = code
        self.used = end + -end % ALIGNMENT
        return start

    def _address(self, name: str) -> int:
        """Where a symbol is; the C library is too far away for a distance of 32 bits."""
        found = self.symbols.get(name)
        if found is None:
            jump = _JUMP.pack(_JUMP_CODE, self._external(name))
            found = self.symbols[name] = self.address + self._append(jump)
        return found

    def add_junction(self, target: int) -> int:
        """The address of a jump to some code, which :meth:`turn` may let lead elsewhere."""
        with self._lock:
            return self.address + self._append(_JUMP.pack(_JUMP_CODE, target))

    def turn(self, junction: int, target: int) -> None:
        """From now on a junction leads to other code; who is in what was there stays in it."""
        place = junction - self.address + len(_JUMP_CODE)
        self._words[place // 8] = target  # one store: whoever jumps finds the one or the other


def _map_executable(descriptor: int, size: int) -> int:
    """Map a file to be read and executed; Python's mmap does not tell where it does."""
    library = ctypes.CDLL(None, use_errno=True)
    function = library.mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    protection = mmap.PROT_READ | mmap.PROT_EXEC
    address = function(None, size, protection, mmap.MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, f"memory cannot be made executable: {os.strerror(number)}")
    return int(address)
