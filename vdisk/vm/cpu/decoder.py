"""Finding instructions in bytes, and their forms, of which no two are worked out twice.

iced-x86 decodes.  What lowering looks at is noted (:mod:`vdisk.vm.cpu.lowering`), so an
instruction of the same code at which the same is found has the same form::

    code -> (look, {found: (look, {found: form, …}), …})

Some 600 codes with two or three forms each are what a kernel is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import iced_x86 as iced

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.decode import DISP, IMM, WIDE, Form
from vdisk.vm.cpu.known import LONGEST, Parameter
from vdisk.vm.cpu.lowering import Lowering, lower_instruction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm.cpu.decode import Decoded, Mode
    from vdisk.vm.cpu.operands import Look

    Fork = tuple[Look, dict[Any, "Fork | Form"]]

PLACES = {Parameter.IMM: IMM, Parameter.DISP: DISP, Parameter.WIDE: WIDE}
"""Where these parameters are among the values of a micro-op."""
FIELD_TRIALS = (0, 0x1234_5678, 0x7654_3210)
MOST_FORMS = 1 << 16
"""A guest's immediates can make any number of some; each is some KiB."""


class Decoder:
    """Decodes for one mode, as if instructions stood at address 0."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self._forms: dict[int, Fork | Form] = {}
        self._count = 0
        self._too_long: Form | None = None
        self._instruction = iced.Instruction()

    # -- instructions ----------------------------------------------------------------------------

    def instructions(self, code: bytes) -> Iterator[tuple[bytes, iced.Instruction]]:
        """The bytes of each instruction, as long as they are all there, and what iced makes of
        them: one object, which becomes the next instruction."""
        decoder = iced.Decoder(self.mode.code, code)
        decode, instruction = decoder.decode_out, self._instruction
        at, end = 0, len(code)
        while at < end:
            decode(instruction)
            if not instruction.code and decoder.last_error == iced.DecoderError.NO_MORE_BYTES:
                return
            length = instruction.len
            yield code[at : at + length], instruction
            at += length
            decoder.ip = 0

    def decode_block(self, code: bytes, offset: int, limit: int) -> list[Decoded]:
        """Instructions from ``offset`` on to the end of their block, at most ``limit``.

        Stops before an instruction whose bytes are not all there.
        """
        block: list[Decoded] = []
        shadow = False
        for each, instruction in self.instructions(code[offset : offset + limit * LONGEST]):
            form = self.form(each, instruction)
            block.append(form.decoded(instruction))
            if form.ends or shadow or len(block) == limit:
                break
            shadow = form.shadow
        return block

    def lowered(self, code: bytes) -> Decoded:
        """One whole instruction."""
        instruction = iced.Decoder(self.mode.code, code).decode()
        return self.form(code, instruction).decoded(instruction)

    # -- forms -----------------------------------------------------------------------------------

    def form(self, code: bytes, instruction: iced.Instruction) -> Form:
        """The form of an instruction; ``code``: its bytes."""
        found = self._forms.get(instruction.code)
        while type(found) is tuple:
            look, ways = found
            found = ways.get(look(instruction))
        if len(code) == LONGEST and not instruction.code and is_too_long(code, self.mode.code):
            return self._form_of_too_long(instruction)
        return found or self._remember(instruction)  # type: ignore[return-value]

    def _remember(self, instruction: iced.Instruction) -> Form:
        if self._count >= MOST_FORMS:
            self._forms.clear()
            self._count = 0
        self._count += 1
        lowering = Lowering(instruction, self.mode)
        form = lower_instruction(lowering)
        ways: dict[Any, Fork | Form] = self._forms
        way = instruction.code
        for look, seen in lowering.looks.items():
            fork = ways.setdefault(way, (look, {}))
            assert isinstance(fork, tuple)
            assert fork[0] is look, "what is looked at depends on what was found before alone"
            ways, way = fork[1], seen
        ways[way] = form
        return form

    def _form_of_too_long(self, instruction: iced.Instruction) -> Form:
        if self._too_long is None:
            form = lower_instruction(Lowering(instruction, self.mode))
            (op,) = form.patterns
            op.shape = op.shape._replace(variant=faults.GP)
            self._too_long = form
        return self._too_long

    # -- fields ----------------------------------------------------------------------------------

    def field(
        self, code: bytes, instruction: iced.Instruction, form: Form
    ) -> tuple[Parameter, int] | None:
        """Which parameter of which micro-op an instruction's last four bytes are, with something
        added to them, if they are nothing else.

        Instructions of a form have the same immediates; with displacements of the same width, they
        have the same field.
        """
        width = instruction.memory_displ_size
        if width not in form.open:
            form.open[width] = self._find_field(code, form)
        return form.open[width]

    def _find_field(self, code: bytes, form: Form) -> tuple[Parameter, int] | None:
        decoder = iced.Decoder(self.mode.code, code)
        offsets = decoder.get_constant_offsets(decoder.decode())
        last = len(code) - 4
        places = (
            (offsets.displacement_offset, offsets.displacement_size),
            (offsets.immediate_offset, offsets.immediate_size),
        )
        if (last, 4) not in places:
            return None
        tried = []
        for number in FIELD_TRIALS:
            changed = code[:-4] + number.to_bytes(4, "little")
            instruction = iced.Decoder(self.mode.code, changed).decode()
            if self.form(changed, instruction) is not form:
                return None
            tried.append([each.values(instruction) for each in form.patterns])
        return _only_difference(tried)


def _only_difference(tried: list[list[list[int]]]) -> tuple[Parameter, int] | None:
    """Where alone instructions differ that ``FIELD_TRIALS`` were tried with, and as these do."""
    places = [(parameter, op) for parameter in PLACES for op in range(len(tried[0]))]
    for parameter, op in places:
        place = PLACES[parameter]
        addends = set()
        for values, number in zip(tried, FIELD_TRIALS, strict=True):
            addends.add(values[op][place] - number)
        if len(addends) == 1:
            for values in tried:
                values[op][place] = 0
            return (parameter, op) if tried[0] == tried[1] == tried[2] else None
    return None


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
