"""Cases for the processor: every instruction with every form of operand, in telling states.

::

    generator = Generator(Random(seed), mode=64)
    case = generator.case(code)             # one of x86_codes.codes(64)

An instruction gets operands by its Code's operand kinds, then a state in which it mostly does
something: memory operands lie in the window (now and then on a page border, at the end of mapped
memory, in read-only or in no memory), branches end on HLT, the stack is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import (
    Encoder,
    Formatter,
    FormatterSyntax,
    Instruction,
    MemorySize,
    MemorySizeExt,
    Mnemonic,
    OpCodeInfo,
    OpKind,
    Register,
    RegisterExt,
)
from iced_x86 import OpCodeOperandKind as Kind

from tests.tools import x86_values as values
from tests.tools.cpu_state import (
    ARENA,
    ARENA_SIZE,
    ARITHMETIC_FLAGS,
    BORDER,
    CODE,
    CODE_SIZE,
    DATA,
    DATA_SIZE,
    DF,
    PAGE,
    READ_ONLY,
    WINDOW,
    WINDOW_SIZE,
    Case,
    State,
)
from tests.tools.x86_codes import (
    APPROXIMATE,
    CODE_NAMES,
    SHIFTS,
    Enumerator,
    members,
    undefined_flags,
    undefined_status,
    words,
)
from tests.tools.x86_fixes import FIXES
from tests.tools.x86_registers import (
    BY_WIDTH,
    MM,
    NUMBERS,
    R8,
    R16,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    REGISTERS,
    RSI,
    RSP,
    SEGMENTS,
    ST,
    XMM,
)
from tests.tools.x86_values import random_fpu
from vdisk.vm.accel.base import Registers

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

ATTEMPTS = 50
SLOT = 64

_KIND_NAMES = {value: name for name, value in members(Kind).items()}
_FIXED = {
    members(Kind)[name]: REGISTERS[name]
    for name in words("AL CL AX EAX RAX DX ST0 ES CS SS DS FS GS")
}
_IMMEDIATES = {
    Kind.IMM8: (OpKind.IMMEDIATE8, 8),
    Kind.IMM16: (OpKind.IMMEDIATE16, 16),
    Kind.IMM32: (OpKind.IMMEDIATE32, 32),
    Kind.IMM64: (OpKind.IMMEDIATE64, 64),
    Kind.IMM8SEX16: (OpKind.IMMEDIATE8TO16, 8),
    Kind.IMM8SEX32: (OpKind.IMMEDIATE8TO32, 8),
    Kind.IMM8SEX64: (OpKind.IMMEDIATE8TO64, 8),
    Kind.IMM32SEX64: (OpKind.IMMEDIATE32TO64, 32),
}
_BRANCHES = {
    Kind.BR16_1: (OpKind.NEAR_BRANCH16, 1),
    Kind.BR16_2: (OpKind.NEAR_BRANCH16, 4),
    Kind.BR32_1: (OpKind.NEAR_BRANCH32, 1),
    Kind.BR32_4: (OpKind.NEAR_BRANCH32, 4),
    Kind.BR64_1: (OpKind.NEAR_BRANCH64, 1),
    Kind.BR64_4: (OpKind.NEAR_BRANCH64, 4),
}
_SEGMENT_NAMES = frozenset({"ES", "CS", "SS", "DS", "FS", "GS"})
_STRING_SOURCE = {16: OpKind.MEMORY_SEG_SI, 32: OpKind.MEMORY_SEG_ESI, 64: OpKind.MEMORY_SEG_RSI}
_STRING_TARGET = {16: OpKind.MEMORY_ESDI, 32: OpKind.MEMORY_ESEDI, 64: OpKind.MEMORY_ESRDI}
_MASKED_TARGET = {16: OpKind.MEMORY_SEG_DI, 32: OpKind.MEMORY_SEG_EDI, 64: OpKind.MEMORY_SEG_RDI}
_PAIRS_16 = ((RBX, RSI), (RBX, RDI), (RBP, RSI), (RBP, RDI), (RSI,), (RDI,), (RBP,), (RBX,), ())

_FLOATS: dict[int, Callable[[Random], int]] = {
    MemorySize.FLOAT32: values.float32,
    MemorySize.FLOAT64: values.float64,
    MemorySize.FLOAT80: values.float80,
    MemorySize.BCD: values.bcd80,
}
_ENVIRONMENTS = {  # where the last instruction's pointers are in FSTENV, FSAVE, FXSAVE images
    MemorySize.FPU_ENV14: (6, 8),
    MemorySize.FPU_STATE94: (6, 8),
    MemorySize.FPU_ENV28: (12, 16),
    MemorySize.FPU_STATE108: (12, 16),
    MemorySize.FXSAVE_512BYTE: (6, 18),
    MemorySize.FXSAVE64_512BYTE: (6, 18),
}


class Generator:
    """Makes cases of one mode from a source of chance."""

    def __init__(self, random: Random, mode: int = 64) -> None:
        self.random = random
        self.mode = mode
        self._encoder = Encoder(mode)
        self._formatter = Formatter(FormatterSyntax.NASM)

    def case(self, code: Enumerator) -> Case:
        """A case of one instruction; raises ValueError if no form of it could be encoded."""
        for _ in range(ATTEMPTS):
            made = Attempt(self, code)
            try:
                return made.build()
            except ValueError as error:  # AH with a REX prefix, and other things that cannot be
                reason = error
        raise ValueError(f"{CODE_NAMES[code]}: {reason}")

    def encode(self, instruction: Instruction, rip: int) -> bytes:
        """The bytes at ``rip``."""
        self._encoder.encode(instruction, rip)
        return self._encoder.take_buffer()

    def text(self, instruction: Instruction) -> str:
        """As an assembler has it."""
        return self._formatter.format(instruction)


class Attempt:
    """One instruction and its state, in the making."""

    def __init__(self, generator: Generator, code: Enumerator) -> None:
        self.generator, self.random, self.mode = generator, generator.random, generator.mode
        self.info = OpCodeInfo(code)
        self.instruction = Instruction()
        self.instruction.code = code
        self.name = CODE_NAMES[code]
        self.memory = bytearray(self.random.randbytes(WINDOW_SIZE))
        self.pinned: set[int] = {RSP}
        self.target: int | None = None  # arena offset of the memory operand
        self.state = self._random_state()

    # -- the state ---------------------------------------------------------------------------

    def _random_state(self) -> State:
        random = self.random
        count, bits = (16, 64) if self.mode == 64 else (8, 32)
        gprs = [values.integer(random, bits) for _ in range(count)] + [0] * (16 - count)
        gprs[RSP] = self.pointer(self._stack_offset())
        if self.mode == 16 and random.random() < 0.5:  # the stack is where SP says
            gprs[RSP] |= random.getrandbits(16) << 16
        flags = 2 | random.getrandbits(12) & ARITHMETIC_FLAGS
        if random.random() < 0.25:
            flags |= DF
        registers = Registers(gprs, 0, flags)
        return State(registers, random_fpu(random, self.mode))

    def _stack_offset(self) -> int:
        random = self.random
        if random.random() < 0.02:
            return 0x4800  # nothing there
        if random.random() < 0.1:
            return BORDER + random.randrange(-16, 17)
        return WINDOW + random.randrange(0x180, WINDOW_SIZE - 0x200) & (
            -16 if random.random() < 0.7 else -1
        )

    def pointer(self, offset: int) -> int:
        """What a pointer register holds to point to an offset of the arena."""
        return offset if self.mode == 16 else ARENA + offset

    def stack_top(self) -> int:
        """The offset of the arena that the stack pointer points to."""
        top = self.state.registers.gprs[RSP]
        return top & 0xFFFF if self.mode == 16 else top - ARENA

    def set_gpr(self, number: int, value: int, bits: int = 64) -> None:
        """Set the low bits of a register."""
        gprs, mask = self.state.registers.gprs, (1 << bits) - 1
        gprs[number] = gprs[number] & ~mask | value & mask
        if self.mode != 64:
            gprs[number] &= 0xFFFF_FFFF

    # -- the instruction ---------------------------------------------------------------------

    def build(self) -> Case:
        registers = self.state.registers
        registers.rip = self._place()
        for n, kind in enumerate(self.info.op_kinds()):
            self._operand(n, kind)
        self._prefixes()
        for names, fix in FIXES:
            if self.name.startswith(names):
                fix(self)
        code = self._encoded(registers.rip)
        self.state.memory = bytes(self.memory)
        return self._finished(code)

    def _place(self) -> int:
        """RIP: a slot of the code pages, sometimes at a page's end."""
        chance = self.random.random()
        if chance < 0.05:
            offset = CODE + PAGE - self.random.randrange(1, 12)
        elif chance < 0.06:
            offset = CODE + CODE_SIZE - self.random.randrange(1, 12)
        else:
            offset = CODE + SLOT * self.random.randrange(CODE_SIZE // SLOT)
        return self.pointer(offset)

    def _encoded(self, rip: int) -> bytes:
        code = self.generator.encode(self.instruction, rip)
        if self.random.random() < 0.01 and len(code) < 14 and not self.info.can_use_lock_prefix:
            return b"\xf0" + code  # LOCK where it must not be
        return code

    def _finished(self, code: bytes) -> Case:
        instruction = self.instruction
        case = Case(code, self.state, self.mode, note=self.generator.text(instruction))
        count, bits = self._shift_count()
        case.ignored_flags = undefined_flags(instruction, count, bits)
        case.ignored_status = undefined_status(instruction)
        case.approximate = instruction.mnemonic in APPROXIMATE
        case.partial = instruction.mnemonic in {Mnemonic.FPREM, Mnemonic.FPREM1}
        case.ignored_memory = self._undefined_memory()
        if instruction.mnemonic in {Mnemonic.BSF, Mnemonic.BSR} and self._source() == 0:
            case.ignored_gprs = 1 << NUMBERS[instruction.op0_register]
        return case

    def _prefixes(self) -> None:
        info, random, instruction = self.info, self.random, self.instruction
        if info.can_use_lock_prefix and instruction.op0_kind == OpKind.MEMORY:
            instruction.has_lock_prefix = random.random() < 0.3
        if instruction.is_string_instruction and random.random() < 0.7:
            if info.can_use_rep_prefix:
                instruction.has_rep_prefix = True
            if info.can_use_repne_prefix and random.random() < 0.5:
                instruction.has_rep_prefix = False
                instruction.has_repne_prefix = True
            self._rep_count()
        if self.target is not None and random.random() < 0.08:
            instruction.segment_prefix = random.choice(SEGMENTS[:4])

    def _rep_count(self) -> None:
        count = self.random.choice([0, 1, 2, 3, 5, 8, 8, 17])
        self.set_gpr(RCX, count, self._address_bits_of_strings())

    def _address_bits_of_strings(self) -> int:
        kinds = {self.instruction.op_kind(n) for n in range(self.instruction.op_count)}
        for table in (_STRING_SOURCE, _STRING_TARGET):
            for bits, kind in table.items():
                if kind in kinds:
                    return bits
        return self.mode

    # -- operands ----------------------------------------------------------------------------

    def _operand(self, n: int, kind: Enumerator) -> None:
        name = _KIND_NAMES[kind]
        if kind in _FIXED:
            self._register(n, _FIXED[kind])
        elif kind in _IMMEDIATES:
            self._immediate(n, kind)
        elif kind == Kind.IMM8_CONST_1:
            self.instruction.set_op_kind(n, OpKind.IMMEDIATE8)
            self.instruction.immediate8 = 1
        elif kind in _BRANCHES:
            self._branch(n, kind)
        elif name.endswith("_OR_MEM") and self.random.random() < 0.4:
            self._register(n, self.random.choice(self._bank(name)))
        elif name.endswith("_OR_MEM") or kind == Kind.MEM:
            self._memory(n)
        elif kind in _IMPLIED_MEMORY:
            _IMPLIED_MEMORY[kind](self, n)
        else:
            self._register(n, self.random.choice(self._bank(name)))

    def _register(self, n: int, register: Enumerator) -> None:
        self.instruction.set_op_kind(n, OpKind.REGISTER)
        self.instruction.set_op_register(n, register)

    def _bank(self, kind_name: str) -> list[Enumerator]:
        """The registers that an operand kind may name."""
        prefix = kind_name.partition("_")[0]
        usable = 16 if self.mode == 64 else 8
        if prefix in {"R16", "R32", "R64"}:
            return BY_WIDTH[int(prefix[1:])][:usable]
        banks = {
            "R8": R8 if self.mode == 64 else R8[:8],
            "XMM": XMM[:usable],
            "MM": MM,
            "STI": ST,
            "SEG": SEGMENTS,
            "CR": [REGISTERS[f"CR{n}"] for n in (0, 2, 3, 4)],
            "DR": [REGISTERS[f"DR{n}"] for n in range(8)],
        }
        return banks[prefix]

    def _immediate(self, n: int, kind: Enumerator) -> None:
        op_kind, bits = _IMMEDIATES[kind]
        instruction = self.instruction
        value = values.integer(self.random, bits)
        before = instruction.op_kind(n - 1) if n else None
        if op_kind == OpKind.IMMEDIATE8 and before in {OpKind.IMMEDIATE8, OpKind.IMMEDIATE16}:
            op_kind = OpKind.IMMEDIATE8_2ND
        instruction.set_op_kind(n, op_kind)
        if op_kind == OpKind.IMMEDIATE8_2ND:
            instruction.immediate8_2nd = value
        elif op_kind == OpKind.IMMEDIATE64:
            instruction.immediate64 = value
        elif op_kind == OpKind.IMMEDIATE16:
            instruction.immediate16 = value
        elif op_kind == OpKind.IMMEDIATE32:
            instruction.immediate32 = value
        elif op_kind == OpKind.IMMEDIATE32TO64:
            instruction.immediate32to64 = (value ^ 1 << 31) - (1 << 31)
        else:
            self._immediate8(op_kind, value)

    def _immediate8(self, op_kind: Enumerator, value: int) -> None:
        signed = (value ^ 0x80) - 0x80
        instruction = self.instruction
        if op_kind == OpKind.IMMEDIATE8TO16:
            instruction.immediate8to16 = signed
        elif op_kind == OpKind.IMMEDIATE8TO32:
            instruction.immediate8to32 = signed
        elif op_kind == OpKind.IMMEDIATE8TO64:
            instruction.immediate8to64 = signed
        else:
            instruction.immediate8 = value

    def _branch(self, n: int, kind: Enumerator) -> None:
        op_kind, size = _BRANCHES[kind]
        target = self.pointer(self.code_offset(near=size == 1))
        self.instruction.set_op_kind(n, op_kind)
        if op_kind == OpKind.NEAR_BRANCH64:
            self.instruction.near_branch64 = target
        elif op_kind == OpKind.NEAR_BRANCH32:
            self.instruction.near_branch32 = target
        else:
            self.instruction.near_branch16 = target & 0xFFFF

    def code_offset(self, near: bool = False) -> int:
        """An offset in the code pages, off the instruction, where a HLT is."""
        own = self.state.registers.rip - self.pointer(0)
        while True:
            if not near and self.random.random() < 0.03:
                return 0x3800  # nothing there
            distance = self.random.randrange(-120, 120)
            if not near:
                distance = self.random.randrange(-CODE_SIZE, CODE_SIZE)
            offset = own + distance
            if CODE <= offset < CODE + CODE_SIZE and not own - 1 <= offset < own + 16:
                return offset

    # -- memory operands ---------------------------------------------------------------------

    def place_operand(self, size: int) -> int:
        """Choose the arena offset of a memory operand."""
        random, chance = self.random, self.random.random()
        if chance < 0.80:
            align = -16 if random.random() < 0.85 else -1
            offset = WINDOW + random.randrange(128, WINDOW_SIZE - 1280) & align
        elif chance < 0.90:
            offset = BORDER - random.randrange(0, max(size, 2) + 2)
        elif chance < 0.94:
            offset = DATA + DATA_SIZE - random.randrange(0, size + 8)
        elif chance < 0.97:
            offset = READ_ONLY + 64 * random.randrange(32)
        else:
            offset = random.choice([0x4000, 0x3FFC, ARENA_SIZE - 2, READ_ONLY + PAGE - 2])
        self.target = offset
        return offset

    def fill(self, offset: int, size: int, value: int) -> None:
        """Put a value into the window, if it is there."""
        start = offset - WINDOW
        if start >= 0 and start + size <= WINDOW_SIZE:
            self.memory[start : start + size] = value.to_bytes(size, "little")

    def _memory(self, n: int) -> None:
        instruction, random = self.instruction, self.random
        instruction.set_op_kind(n, OpKind.MEMORY)
        size = MemorySizeExt.size(instruction.memory_size) or 8
        offset = self.place_operand(size)
        self._fill_operand(offset)
        narrow = {64: 32, 32: 16, 16: 32}[self.mode]
        chance = 0.04 if self.mode == 32 else 0.2
        bits = narrow if random.random() < chance else self.mode
        if bits == 16:
            self._address16(offset)
        else:
            self._address(offset, bits)

    def _fill_operand(self, offset: int) -> None:
        memory_size = self.instruction.memory_size
        element = MemorySizeExt.element_type(memory_size)
        element_size = MemorySizeExt.element_size(memory_size)
        if not element_size or self.random.random() < 0.2:
            return
        make = _FLOATS.get(element)
        for i in range(MemorySizeExt.element_count(memory_size) or 1):
            value = make(self.random) if make else values.integer(self.random, 8 * element_size)
            self.fill(offset + i * element_size, element_size, value & (1 << 8 * element_size) - 1)

    def _address(self, offset: int, bits: int) -> None:
        """Form an address of 32 or 64 bits that is the pointer to ``offset``."""
        instruction, random = self.instruction, self.random
        bank, usable = BY_WIDTH[bits], 16 if self.mode == 64 else 8
        gprs, pointer = self.state.registers.gprs, self.pointer(offset)
        form = random.choice(["base", "base", "base+index", "index", "base+index", "none", "rip"])
        if form == "rip" and self.mode == 64:
            instruction.memory_base = Register.RIP if bits == 64 else Register.EIP
            instruction.memory_displacement = pointer
            instruction.memory_displ_size = bits // 8
            return
        displacement = random.choice(
            [0, random.randrange(-128, 128), random.randrange(-(1 << 31), 1 << 31)]
        )
        remaining = pointer
        if "index" in form:
            index = random.choice([i for i in range(usable) if i != RSP])
            scale = random.choice([1, 2, 4, 8])
            free = form == "base+index" and index not in self.pinned and random.random() < 0.4
            value = values.integer(random, bits) if free else random.randrange(-64, 64)
            if index in self.pinned:
                value = gprs[index] & (1 << bits) - 1
            self.set_gpr(index, value, bits)
            self.pinned.add(index)
            instruction.memory_index, instruction.memory_index_scale = bank[index], scale
            remaining -= value * scale
        if "base" in form:
            base = random.choice(range(usable))
            instruction.memory_base = bank[base]
            if base in self.pinned:
                displacement = _signed(remaining - gprs[base], bits)
            else:
                self.set_gpr(base, remaining - displacement, bits)
                self.pinned.add(base)
        else:
            displacement = _signed(remaining, bits)
        self._displace(displacement, bits, "base" in form)

    def _displace(self, displacement: int, bits: int, has_base: bool) -> None:
        instruction = self.instruction
        if not -(1 << 31) <= displacement < 1 << 31:
            raise ValueError("the address is out of reach")
        instruction.memory_displacement = displacement & (1 << bits) - 1
        if not has_base:
            instruction.memory_displ_size = bits // 8
        elif displacement == 0 and self.random.random() < 0.8:
            instruction.memory_displ_size = 0
        elif -128 <= displacement < 128 and self.random.random() < 0.8:
            instruction.memory_displ_size = 1
        else:
            instruction.memory_displ_size = bits // 8

    def _address16(self, offset: int) -> None:
        """Form a 16-bit address."""
        instruction, gprs = self.instruction, self.state.registers.gprs
        chosen = self.random.choice(_PAIRS_16)
        displacement = self.random.choice(
            [0, self.random.randrange(-128, 128), self.random.randrange(1 << 16)]
        )
        remaining = offset
        for number in chosen[:-1]:
            self.pinned.add(number)
            remaining -= gprs[number] & 0xFFFF
        if not chosen:
            displacement = remaining
        elif chosen[-1] in self.pinned:
            displacement = remaining - (gprs[chosen[-1]] & 0xFFFF)
        else:
            self.set_gpr(chosen[-1], remaining - displacement, 16)
            self.pinned.add(chosen[-1])
        displacement = _signed(displacement, 16)
        if chosen:
            instruction.memory_base = R16[chosen[0]]
        if len(chosen) == 2:
            instruction.memory_index = R16[chosen[1]]
        instruction.memory_displacement = displacement & 0xFFFF
        small = chosen and -128 <= displacement < 128
        instruction.memory_displ_size = (0 if displacement == 0 else 1) if small else 2

    # -- implied memory ----------------------------------------------------------------------

    def _implied_bits(self) -> int:
        narrow = {64: 32, 32: 16, 16: 32}[self.mode]
        return narrow if self.random.random() < (0.02 if self.mode == 32 else 0.15) else self.mode

    def _string(self, n: int, table: dict[int, Enumerator], number: int) -> None:
        kinds = [self.instruction.op_kind(i) for i in range(n)]
        bits = next(
            (b for t in (_STRING_SOURCE, _STRING_TARGET) for b, k in t.items() if k in kinds), 0
        )
        bits = bits or self._implied_bits()
        self.instruction.set_op_kind(n, table[bits])
        size = MemorySizeExt.size(self.instruction.memory_size) or 16
        offset = self.place_operand(size)
        if self.random.random() < 0.3:  # comparisons that go on
            self.memory[:] = bytes([self.memory[0]]) * WINDOW_SIZE
        self.set_gpr(number, self.pointer(offset), bits)
        self.pinned.add(number)

    def string_source(self, n: int) -> None:
        self._string(n, _STRING_SOURCE, RSI)

    def string_target(self, n: int) -> None:
        self._string(n, _STRING_TARGET, RDI)

    def masked_target(self, n: int) -> None:
        self._string(n, _MASKED_TARGET, RDI)

    def translation(self, n: int) -> None:
        bits = self._implied_bits()
        self.instruction.set_op_kind(n, OpKind.MEMORY)
        self.instruction.memory_base = BY_WIDTH[bits][RBX]
        self.instruction.memory_index = Register.AL
        al = self.state.registers.gprs[RAX] & 0xFF
        self.set_gpr(RBX, self.pointer(self.place_operand(1)) - al, bits)

    def absolute(self, n: int) -> None:
        bits = self._implied_bits()
        self.instruction.set_op_kind(n, OpKind.MEMORY)
        self.instruction.memory_displacement = self.pointer(self.place_operand(8)) & (1 << bits) - 1
        self.instruction.memory_displ_size = bits // 8

    # -- what particular instructions need ---------------------------------------------------

    def operand_bits(self, n: int = 0) -> int:
        """The size of an operand."""
        if self.instruction.op_kind(n) == OpKind.REGISTER:
            return RegisterExt.size(self.instruction.op_register(n)) * 8
        return MemorySizeExt.size(self.instruction.memory_size) * 8

    def set_operand(self, n: int, value: int) -> None:
        """Give a register or memory operand a value, unless its register is an address."""
        bits = self.operand_bits(n)
        if self.instruction.op_kind(n) != OpKind.REGISTER:
            self.fill(self.target or 0, bits // 8, value & (1 << bits) - 1)
            return
        number = NUMBERS.get(self.instruction.op_register(n))
        if number is not None and number not in self.pinned:
            self.set_gpr(number, value, bits)
        elif number is not None and number != RSP:
            raise ValueError("the register is an address")

    def _source(self) -> int | None:
        """The value of a register or memory source operand (BSF, BSR)."""
        instruction = self.instruction
        bits = self.operand_bits(1)
        if instruction.op1_kind == OpKind.REGISTER:
            number = NUMBERS[instruction.op1_register]
            return self.state.registers.gprs[number] & (1 << bits) - 1
        start = (self.target or 0) - WINDOW
        inside = 0 <= start <= WINDOW_SIZE - bits // 8
        return int.from_bytes(self.memory[start : start + bits // 8], "little") if inside else 0

    def _shift_count(self) -> tuple[int | None, int]:
        """The masked count of a shift, and the size of what it shifts."""
        instruction = self.instruction
        if instruction.mnemonic not in SHIFTS:
            return None, 0
        bits, last = self.operand_bits(), instruction.op_count - 1
        is_register = instruction.op_kind(last) == OpKind.REGISTER
        raw = self.state.registers.gprs[RCX] if is_register else instruction.immediate8
        return raw & (63 if bits == 64 else 31), bits

    def _undefined_memory(self) -> tuple[tuple[int, int], ...]:
        """Where an image of the FPU keeps pointers that processors track differently, and where
        a selector was pushed into more bytes than it has (SDM, PUSH)."""
        if self.name.startswith(("PUSHD_", "PUSHQ_")) and self.name[-2:] in _SEGMENT_NAMES:
            size = 4 if self.name.startswith("PUSHD") else 8
            top = self.stack_top() - WINDOW
            return ((top - size + 2, size - 2),)
        found = _ENVIRONMENTS.get(self.instruction.memory_size)
        if found is None or self.target is None or "LD" in self.name or "RSTOR" in self.name:
            return ()
        start = self.target - WINDOW
        ignored = [(start + found[0], found[1])]
        if self.name.startswith("FXSAVE"):
            ignored += [(start + 28, 4), (start + 416, 96)]  # MXCSR_MASK; reserved, not written
            ignored += [(start + 42 + 16 * i, 6) for i in range(8)]
        return tuple(ignored)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


_IMPLIED_MEMORY: dict[int, Callable[[Attempt, int], None]] = {
    Kind.SEG_RSI: Attempt.string_source,
    Kind.ES_RDI: Attempt.string_target,
    Kind.SEG_RDI: Attempt.masked_target,
    Kind.SEG_RBX_AL: Attempt.translation,
    Kind.MEM_OFFS: Attempt.absolute,
}
