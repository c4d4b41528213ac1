"""Commands of the human monitor that look inside: memory, instructions, registers, PCI.

A format is ``/COUNT``, ``x d u o c i`` (hexadecimal, signed, unsigned, octal, characters,
instructions) and ``b h w g`` (1, 2, 4, 8 bytes) together: ``/10i``, ``/8xw``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError, OutOfRangeError, UnsupportedFeatureError
from vdisk.vm.monitor.expressions import MASK, evaluate
from vdisk.vm.monitor.human import Context, HumanCommand, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm.monitor.control import ProcessorState

MOST_ITEMS = 4096
"""Numbers or instructions that one command shows."""
LONGEST_INSTRUCTION = 15
MOST_DUMPED = 1 << 30
"""Bytes of one file of memory."""
DUMP_PIECE = 1 << 20
_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
_LINE = 16
"""Bytes in a line."""
_FORMAT = re.compile(r"/(\d*)([xduocibhwg]*)")


class Layout(NamedTuple):
    """A format; ``size``: of a number, bytes."""

    items: int = 1
    letter: str = "x"
    size: int = 4


def split_format(words: Sequence[str], name: str) -> tuple[Layout, str]:
    """The format, and the expression after it."""
    layout, rest = Layout(), list(words)
    if rest[0].startswith("/"):
        match = _FORMAT.fullmatch(rest.pop(0))
        if match is None:
            raise InvalidRequestError(f"{name}: invalid format '{words[0]}'")
        letters = [letter for letter in match[2] if letter not in _SIZES]
        sizes = [_SIZES[letter] for letter in match[2] if letter in _SIZES]
        usual = 1 if letters[-1:] == ["c"] else 4
        layout = Layout(int(match[1] or 1), (letters or ["x"])[-1], (sizes or [usual])[-1])
    if not 0 < layout.items <= MOST_ITEMS:
        raise InvalidRequestError(f"{name}: at most {MOST_ITEMS} numbers")
    if not rest:
        raise InvalidRequestError(f"{name}: an address expected")
    return layout, " ".join(rest)


def shown(value: int, letter: str, size: int) -> str:
    """One number, as wide as the widest of its kind."""
    bits = 8 * size
    value &= (1 << bits) - 1
    if letter == "d":
        return f"{value - (value >> bits - 1 << bits):>{len(str(1 << bits - 1)) + 1}}"
    if letter == "c":
        return f"'{chr(value)}'" if 32 <= value < 127 else f"'\\x{value:02x}'"
    if letter == "u":
        return f"{value:>{len(str(1 << bits))}}"
    if letter == "o":
        return f"0{value:0{-(-bits // 3)}o}"
    return f"0x{value:0{size * 2}x}"


def _examine(context: Context, words: Sequence[str], *, virtual: bool) -> str:
    """``x /8xw $esp``, ``xp /10i 0x7c00``."""
    layout, text = split_format(words, "x" if virtual else "xp")
    state = context.machine.processor(context.cpu)
    start = evaluate(text, state.registers)
    read = _virtual(context) if virtual else context.machine.read_memory
    if layout.letter == "i":
        return _instructions(read, start, layout.items, state)
    data = read(start, layout.items * layout.size)
    lines = []
    for at in range(0, len(data), _LINE):
        row = data[at : at + _LINE]
        parts = [row[n : n + layout.size] for n in range(0, len(row), layout.size)]
        values = [shown(int.from_bytes(one, "little"), *layout[1:]) for one in parts]
        lines.append(f"{start + at & MASK:016x}: {' '.join(values)}\n")
    return "".join(lines)


def _virtual(context: Context) -> Callable[[int, int], bytes]:
    return lambda address, length: context.machine.read_virtual(context.cpu, address, length)


def _instructions(
    read: Callable[[int, int], bytes], start: int, count: int, state: ProcessorState
) -> str:
    try:
        from iced_x86 import Decoder, Formatter, FormatterSyntax
    except ImportError as error:
        raise UnsupportedFeatureError("showing instructions needs the package iced-x86") from error
    formatter = Formatter(FormatterSyntax.NASM)
    formatter.hex_prefix, formatter.hex_suffix = "0x", ""
    code = _as_far_as_there_is(read, start, count * LONGEST_INSTRUCTION)
    decoder = Decoder(state.bits, code, ip=start)
    lines = []
    for _ in range(count):
        if not decoder.can_decode:
            break
        address = decoder.ip & MASK
        instruction = decoder.decode()
        length = address - start & MASK
        raw = code[length : length + instruction.len].hex(" ")
        lines.append(f"0x{address:08x}:  {raw:<24} {formatter.format(instruction)}\n")
    return "".join(lines)


def _as_far_as_there_is(read: Callable[[int, int], bytes], start: int, length: int) -> bytes:
    """Memory from ``start`` on, up to the first page that cannot be read."""
    data, end = bytearray(), start + length
    while start < end:
        size = min(4096 - start % 4096, end - start)
        try:
            data += read(start, size)
        except OutOfRangeError:
            if not data:
                raise
            break
        start += size
    return bytes(data)


def _print(context: Context, words: Sequence[str]) -> str:
    """``p /x $eax + 1``."""
    layout, text = split_format(words, "print")
    value = evaluate(text, context.machine.processor(context.cpu).registers)
    if layout.letter == "x":
        return f"0x{value:x}\n"
    if layout.letter == "c":
        return shown(value & 0xFF, "c", 1) + "\n"
    return shown(value, layout.letter, 8).strip() + "\n"


def _dump(read: Callable[[int, int], bytes], words: Sequence[str]) -> str:
    from vdisk.errors import from_os_error

    start, length, filename = number(words[0]), number(words[1]), words[2]
    if not 0 <= length <= MOST_DUMPED:
        raise InvalidRequestError(f"at most {MOST_DUMPED} bytes")
    try:
        with open(filename, "wb") as file:
            for at in range(start, start + length, DUMP_PIECE):
                file.write(read(at, min(DUMP_PIECE, start + length - at)))
    except OSError as error:
        raise from_os_error(error, path=filename, operation="write memory") from error
    return ""


def _cpu(context: Context, words: Sequence[str]) -> str:
    index = number(words[0])
    if not 0 <= index < context.machine.cpus():
        raise InvalidRequestError("invalid CPU index")
    context.cpu = index
    return ""


# -- info ----------------------------------------------------------------------------------------


def _info_cpus(context: Context, _words: Sequence[str]) -> str:
    machine = context.machine
    return "".join(
        f"{'*' if index == context.cpu else ' '} CPU #{index}: "
        f"pc=0x{(state := machine.processor(index)).code:016x}"
        f"{' (halted)' if state.halted else ''}\n"
        for index in range(machine.cpus())
    )


def _info_registers(context: Context, words: Sequence[str]) -> str:
    machine = context.machine
    chosen = range(machine.cpus()) if words[0] else [context.cpu]
    return "".join(f"\nCPU#{index}\n{machine.registers(index)}" for index in chosen)


def _info_pci(context: Context, _words: Sequence[str]) -> str:
    lines = []
    for one in context.machine.pci():
        lines.append(f"  Bus  0, device {one.slot:3d}, function {one.function}:\n")
        lines.append(
            f"    Class {one.class_code >> 8:04x}: PCI device {one.vendor:04x}:{one.device:04x}\n"
        )
        if one.irq is not None:
            lines.append(f"      IRQ {one.irq}.\n")
        for index, kind, address, size in one.ranges:
            last = "" if address is None else f" at 0x{address:x} [0x{address + size - 1:x}]"
            lines.append(f"      BAR{index}: {kind}{last or ', not mapped'}, 0x{size:x} bytes\n")
        lines.append(f'      id "{one.name}"\n')
    return "".join(lines)


def _info_network(context: Context, _words: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in context.machine.network()) or "no network\n"


def _info_memory(context: Context, _words: Sequence[str]) -> str:
    return f"base memory: {context.machine.memory_size()}\nplugged memory: 0\n"


INFO: dict[str, HumanCommand] = {
    "cpus": HumanCommand("", "the processors", _info_cpus),
    "memory_size_summary": HumanCommand("", "how much memory there is", _info_memory),
    "network": HumanCommand("", "the network card and what leads to it", _info_network),
    "pci": HumanCommand("", "the devices on the PCI bus", _info_pci),
    "registers": HumanCommand("[-a]", "the registers (-a: of all processors)", _info_registers),
}

COMMANDS: dict[str, HumanCommand] = {
    "cpu": HumanCommand("index", "the processor that other commands look at", _cpu),
    "memsave": HumanCommand(
        "address size file",
        "save memory, by a processor's own addresses, to a file",
        lambda context, words: _dump(_virtual(context), words),
    ),
    "pmemsave": HumanCommand(
        "address size file",
        "save physical memory to a file",
        lambda context, words: _dump(context.machine.read_memory, words),
    ),
    "print": HumanCommand("[/fmt] expression…", "the value of an expression: p $eip + 4", _print),
    "x": HumanCommand(
        "[/fmt] address…",
        "show memory by a processor's own addresses: x /8xw $esp, x /10i $eip",
        lambda context, words: _examine(context, words, virtual=True),
    ),
    "xp": HumanCommand(
        "[/fmt] address…",
        "show physical memory: xp /8xw 0x1000 (b, h, w, g: 1 to 8 bytes)",
        lambda context, words: _examine(context, words, virtual=False),
    ),
}
