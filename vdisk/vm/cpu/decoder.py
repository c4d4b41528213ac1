"""Finding instructions in bytes, and remembering what they are lowered to.

iced-x86 decodes; :mod:`vdisk.vm.cpu.decode` lowers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import iced_x86 as iced

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.decode import lower_instruction
from vdisk.vm.cpu.known import LONGEST, Field, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm.cpu.decode import Decoded, Mode


class Decoder:
    """Decodes for one mode, remembering by bytes."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self._known: dict[bytes, Decoded] = {}
        self._instruction = iced.Instruction()

    def decode_block(self, code: bytes, offset: int, limit: int) -> list[Decoded]:
        """Instructions from ``offset`` on to the end of their block, at most ``limit``.

        Stops before an instruction whose bytes are not all there.
        """
        block: list[Decoded] = []
        shadow = False
        for each in self.instructions(code[offset : offset + limit * LONGEST]):
            found = self.lowered(each)
            block.append(found)
            if found.ends or shadow or len(block) == limit:
                break
            shadow = found.shadow
        return block

    def instructions(self, code: bytes) -> Iterator[bytes]:
        """The bytes of each instruction, as long as they are all there."""
        decoder = iced.Decoder(self.mode.code, code)
        decode, instruction = decoder.decode_out, self._instruction
        at = 0
        while at < len(code):
            decode(instruction)
            if instruction.is_invalid and decoder.last_error == iced.DecoderError.NO_MORE_BYTES:
                return
            end = at + instruction.len
            yield code[at:end]
            at = end

    def lowered(self, code: bytes) -> Decoded:
        """One whole instruction."""
        found = self._known.get(code)
        if found is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            found = self._known[code] = self._lower(code)
        return found

    def field(self, code: bytes) -> Field | None:
        """Which parameter an instruction's last four bytes are, if they are nothing else."""
        decoder = iced.Decoder(self.mode.code, code)
        offsets = decoder.get_constant_offsets(decoder.decode())
        last = len(code) - 4
        places = (
            (offsets.displacement_offset, offsets.displacement_size),
            (offsets.immediate_offset, offsets.immediate_size),
        )
        if (last, 4) not in places:
            return None
        # One of them is what ``known`` makes the templates from: zero.
        tried = [self._lower(code[:-4] + number.to_bytes(4, "little")) for number in FIELD_TRIALS]
        return _only_difference(tried)

    def _lower(self, code: bytes) -> Decoded:
        """Instructions are lowered as if they stood at address 0."""
        instruction = iced.Decoder(self.mode.code, code).decode()
        decoded = lower_instruction(instruction, self.mode)
        if instruction.is_invalid and is_too_long(code, self.mode.code):
            (op,) = decoded.ops
            op.shape = op.shape._replace(variant=faults.GP)
        return decoded


FIELD_TRIALS = (0, 0x1234_5678, 0x7654_3210)


def _only_difference(tried: list[Decoded]) -> Field | None:
    """The parameter in which instructions differ that were lowered from ``FIELD_TRIALS``."""
    first = tried[0]
    for place, op in enumerate(first.ops):
        for parameter in Parameter:
            name = parameter.name.lower()
            addend = getattr(op, name)
            if addend is None or addend == getattr(tried[1].ops[place], name):
                continue
            expected = [_with_field(first, place, parameter, number) for number in FIELD_TRIALS]
            return Field(parameter, place, addend) if expected == tried else None
    return None


def _with_field(decoded: Decoded, place: int, parameter: Parameter, number: int) -> Decoded:
    """The same instruction with a number added to one parameter of one micro-op."""
    name = parameter.name.lower()
    op = decoded.ops[place]
    changed = replace(op, **{name: getattr(op, name) + number})
    jump = decoded.jump
    if parameter is Parameter.WIDE and op.jump is not None and jump is not None:
        changed, jump = replace(changed, jump=op.jump + number), jump + number
    ops = [*decoded.ops[:place], changed, *decoded.ops[place + 1 :]]
    return replace(decoded, ops=ops, jump=jump)


MOST_KNOWN = 200_000
"""Instructions that are remembered, each about 1 KiB: guests may make up any number of them."""

_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")


def is_too_long(code: bytes, mode: int) -> bool:
    """True if an instruction's first bytes, not valid by themselves, belong to one of more than
    15: #GP(0) instead of #UD.  Repeated prefixes are what can make one so long."""
    if len(code) < LONGEST:
        return False
    prefixes = next((n for n, byte in enumerate(code) if byte not in _PREFIXES), len(code))
    if prefixes == len(code):
        return True
    decoder = iced.Decoder(mode, bytes(set(code[:prefixes])) + code[prefixes:])
    rest = decoder.decode()
    return bool(rest.is_invalid) and decoder.last_error == iced.DecoderError.NO_MORE_BYTES
