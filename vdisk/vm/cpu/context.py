"""What a semantic function works with: its operands, memory, flags and the ends of a record.

A :class:`Shape` is everything that generated code depends on (operation, widths, kinds of
operands, whether the flags are wanted …); what differs between two instructions of one shape
(which register, which displacement) is a parameter of the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu import flags, mmu
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.flags import ARITHMETIC, SHIFTS, Family, Lazy, cc_op
from vdisk.vm.cpu.routines import page_of
from vdisk.vm.cpu.state import FIELDS, READ_TLB, WRITE_TLB

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.cpu.builder import Builder, Value, Variable


class Shape(NamedTuple):
    """What a handler is generated for.

    ``operation``: name of the semantic function.  ``size``: width in bits.  ``operands``: a letter
    each, ``r`` register, ``m`` memory, ``i`` immediate, ``x`` XMM, ``w`` MMX.  ``address``: how
    the memory operand's address is formed: its width, then ``x`` with an index, ``s`` with a
    segment's base, ``c`` with limit and rights, ``a`` with
    alignment checked.  ``code``: 16, 32 or 64, the mode of the
    code segment.  ``stack``: width of the stack pointer, negative where the stack segment must be
    checked.  ``flags``: somebody reads the arithmetic flags that it leaves.  ``known``: ``cc_op``
    before it, or -1.  ``variant``: whatever else the operation tells apart (a condition, a source
    width).  ``lock``: with a LOCK prefix.
    """

    operation: str
    size: int = 32
    operands: str = ""
    address: str = ""
    code: int = 64
    stack: int = 64
    flags: bool = True
    known: int = -1
    variant: int = 0
    lock: bool = False

    @property
    def symbol(self) -> str:
        """A name for the linker."""
        known = "u" if self.known < 0 else str(self.known)
        stack = f"c{-self.stack}" if self.stack < 0 else str(self.stack)
        words = (self.operation, self.size, self.operands, self.address or "n", self.code, stack)
        tail = (int(self.flags), known, self.variant, int(self.lock))
        return "h_" + "_".join(map(str, (*words, *tail)))


ALIGNMENT_CHECK = 17
_REGISTER_PARAMS = ("r0", "r1", "r2")
XMM0 = FIELDS["xmm0"].offset
SS_BASE = FIELDS["ss_base"].offset


class Context:
    """One shape being written by one builder."""

    def __init__(self, b: Builder, shape: Shape) -> None:
        self.b, self.shape = b, shape
        self.size, self.type = shape.size, f"i{shape.size}"
        self._linear: Value | None = None

    # -- operands ----------------------------------------------------------------------------

    def const(self, number: int, kind: str | None = None) -> Value:
        return self.b.const(kind or self.type, number)

    def kind(self, index: int) -> str:
        """The letter of an operand."""
        return self.shape.operands[index]

    def register(self, index: int) -> Value:
        """Offset in the state of register operand ``index``."""
        before = sum(letter in "rxw" for letter in self.shape.operands[:index])
        return self.b.param(_REGISTER_PARAMS[before])

    def read(self, index: int, size: int | None = None) -> Value:
        """The value of an operand, ``size`` bits (default: the operation's)."""
        kind = f"i{size or self.size}"
        match self.kind(index):
            case "m":
                return self.load(self.linear(size or self.size), kind)
            case "i":
                return self.b.param("imm").to(kind)
            case _:
                return self.b.load_state(self.register(index), kind)

    def write(self, index: int, value: Value) -> None:
        """Set an operand; a 32-bit register's upper half becomes zero."""
        if self.kind(index) == "m":
            self.store(self.linear(int(value.type[1:]), write=True), value)
        elif self.kind(index) == "r":
            wide = value.zext("i64") if value.type == "i32" else value
            self.b.store_state(self.register(index), wide)
        else:
            self.b.store_state(self.register(index), value)

    def gpr(self, number: int, kind: str | None = None) -> Value:
        """A general register that the operation implies."""
        return self.b.load_state(8 * number, kind or self.type)

    def set_gpr(self, number: int, value: Value) -> None:
        wide = value.zext("i64") if value.type == "i32" else value
        self.b.store_state(8 * number, wide)

    def modify(self, index: int, change: Callable[[Value], Value]) -> tuple[Value, Value]:
        """Read, change and write an operand: (what it was, what it is)."""
        if self.kind(index) != "m":
            old = self.read(index)
            new = change(old)
            self.write(index, new)
            return old, new
        linear = self.linear(self.size, write=True)
        return self.modify_memory(linear, change)

    # -- addresses ---------------------------------------------------------------------------

    def offset(self) -> Value:
        """The effective address of the memory operand, before the segment, as ``i64``."""
        b, address = self.b, self.shape.address
        total = b.load_state(b.param("base"), "i64") + b.param("disp")
        if "x" in address:
            total = total + (b.load_state(b.param("index"), "i64") << b.param("scale"))
        width = int(address[:2])
        return total if width == 64 else total & ((1 << width) - 1)

    def linear(self, size: int, *, write: bool = False, plus: int = 0) -> Value:
        """The linear address of the memory operand; ``plus`` bytes behind its beginning."""
        if self._linear is None:
            self._linear = self.segmented(self.offset(), size // 8, write)
        return self._linear + plus if plus else self._linear

    def segmented(self, offset: Value, size: int, write: bool) -> Value:
        """``offset`` in the segment that the record names."""
        address = self.shape.address
        if "c" in address:
            return self.checked(self.b.param("segment"), offset, size, write)
        if "s" in address:
            total = offset + self.b.load_state(self.b.param("segment"), "i64")
            return total if self.shape.code == 64 else total & 0xFFFF_FFFF
        return offset

    def checked(self, segment: Value, offset: Value, size: int, write: bool) -> Value:
        """``offset`` in a segment whose limit and rights are looked at."""
        b = self.b
        how = b.const("i64", size << 1 | int(write))
        linear = b.call("segment_linear", segment, offset, how)
        self.check()
        return linear

    def check(self) -> None:
        """End in the fault that a routine has described, if one has."""
        with self.b.if_(self.b.get("pending").ne(0), unlikely=True):
            self.b.fault()

    def raise_(self, vector: int, error: Value | int = 0) -> None:
        """A fault of this instruction (ends the branch of code it stands in)."""
        self.b.set("fault_vector", vector)
        self.b.set("fault_error", error)
        self.b.fault()

    # -- memory ------------------------------------------------------------------------------

    def _entry(self, linear: Value, *, write: bool = False) -> Value:
        return mmu.tlb_place(self.b.tlb(), WRITE_TLB if write else READ_TLB, linear)

    def _hit(self, tag: Value, linear: Value, size: int) -> Value:
        last = linear + (size - 1) if size > 1 else linear
        return tag.eq(page_of(last))

    def forget_linear(self) -> None:
        """The memory operand's address was worked out on a branch that is over."""
        self._linear = None

    def probe(self, linear: Value, size: int, *, write: bool = False) -> tuple[Value, Value]:
        """Whether the TLB has all of an access; where that is in the host then."""
        b, entry = self.b, self._entry(linear, write=write)
        hit = self._hit(b.load_state(entry, "i64"), linear, size)
        return hit, linear + b.load_state(entry + 8, "i64")

    def load(self, linear: Value, kind: str) -> Value:
        """Guest memory at a linear address; faults are the instruction's."""
        size = int(kind[1:]) // 8
        self.check_alignment(linear, size)
        if size > 8:
            low = self.load(linear, "i64").zext(kind)
            rest = self.load(self.wrap(linear + 8), f"i{8 * (size - 8)}").zext(kind)
            return low | (rest << 64)
        b = self.b
        entry, result = self._entry(linear), b.variable(kind)
        with b.if_(self._hit(b.load_state(entry, "i64"), linear, size), likely=True):
            result.set(b.load_host(linear + b.load_state(entry + 8, "i64"), kind))
        with b.else_():
            loaded = b.call("slow_load", b.tlb(), linear, b.const("i64", size))
            self.check()
            result.set(loaded.trunc(kind))
        return result.get()

    def check_alignment(self, linear: Value, size: int) -> None:
        """#AC(0) in modes that ask for it (SDM volume 3, table 6-7)."""
        if "a" in self.shape.address and size > 1:
            part = 1 << (size.bit_length() - 1)  # 10 bytes: 8
            with self.b.if_((linear & (part - 1)).ne(0), unlikely=True):
                self.raise_(ALIGNMENT_CHECK)

    def host_page(self, linear: Value, *, write: bool) -> Value:
        """What to add to addresses of a page to get to the host's memory; 0: not in the TLB."""
        b, entry = self.b, self._entry(linear, write=write)
        hit = b.load_state(entry, "i64").eq(page_of(linear))
        return b.select(hit, b.load_state(entry + 8, "i64"), b.const("i64", 0))

    def wrap(self, linear: Value) -> Value:
        """An address that was counted up, as wide as addresses are here."""
        return linear if self.shape.code == 64 else linear & 0xFFFF_FFFF

    def store(self, linear: Value, value: Value) -> None:
        """Write guest memory."""
        size = int(value.type[1:]) // 8
        self.check_alignment(linear, size)
        if size > 8:
            self.check_write(linear, size)
            self.store(linear, value.trunc("i64"))
            self.store(self.wrap(linear + 8), (value >> 64).trunc(f"i{8 * (size - 8)}"))
            return
        b = self.b
        entry = self._entry(linear, write=True)
        with b.if_(self._hit(b.load_state(entry, "i64"), linear, size), likely=True):
            b.store_host(linear + b.load_state(entry + 8, "i64"), value)
        with b.else_():
            b.call("slow_store", b.tlb(), linear, b.const("i64", size), value.zext("i64"))
            self.check()

    def check_write(self, linear: Value, size: int) -> None:
        """Fault now if a store there would, before anything else is changed."""
        b = self.b
        entry = self._entry(linear, write=True)
        hit = self._hit(b.load_state(entry, "i64"), linear, size)
        with b.if_(~hit, unlikely=True):
            b.call("check_write", b.tlb(), linear, b.const("i64", size))
            self.check()

    def modify_memory(self, linear: Value, change: Callable[[Value], Value]) -> tuple[Value, Value]:
        """Read, change and write; atomically with a LOCK prefix."""
        b, size = self.b, self.size // 8
        self.check_alignment(linear, size)
        old, new, wide = b.variable(self.type), b.variable(self.type), b.const("i64", size)
        hit, found = self.probe(linear, size, write=True)
        host, direct = b.variable("i64", found), b.variable("i1", hit)
        with b.if_(~hit, unlikely=True):
            host.set(b.call("writable_address", b.tlb(), linear, wide))
            self.check()
            direct.set(host.get().ne(0))
        with b.if_(direct.get(), likely=True):
            self._modify_host(host.get(), old, new, change)
        with b.else_():
            if self.shape.lock:
                self._modify_locked(linear, old, new, change)
            else:
                self._modify_slowly(linear, old, new, change)
        return old.get(), new.get()

    def _modify_host(
        self, host: Value, old: Variable, new: Variable, change: Callable[[Value], Value]
    ) -> None:
        if self.shape.lock:
            self._exchange(host, old, new, change)
        else:
            old.set(self.b.load_host(host, self.type))
            new.set(change(old.get()))
            self.b.store_host(host, new.get())

    def _modify_locked(
        self, linear: Value, old: Variable, new: Variable, change: Callable[[Value], Value]
    ) -> None:
        """Where there is no write tag: beside code, across pages, on the bus."""
        b, wide = self.b, self.b.const("i64", self.size // 8)
        host = b.call("locked_address", b.tlb(), linear, wide)
        with b.if_(host.ne(0)):
            self._exchange(host, old, new, change)
            b.call("stored", host - b.get("memory"), wide)
        with b.else_():
            self.own_bus()
            self._modify_slowly(linear, old, new, change)

    def own_bus(self) -> None:
        """Go on only while no other processor executes anything: Python sees to that, and the
        instruction is begun again."""
        with self.b.if_(self.b.get("bus_owned").eq(0), unlikely=True):
            self.b.leave(Exit.BUS)

    def _modify_slowly(
        self, linear: Value, old: Variable, new: Variable, change: Callable[[Value], Value]
    ) -> None:
        b, wide = self.b, self.b.const("i64", self.size // 8)
        old.set(b.call("slow_load", b.tlb(), linear, wide).trunc(self.type))
        new.set(change(old.get()))
        b.call("slow_store", b.tlb(), linear, wide, new.get().zext("i64"))

    def _exchange(
        self, host: Value, old: Variable, new: Variable, change: Callable[[Value], Value]
    ) -> None:
        """Read, change and write at a host address, atomically."""
        b = self.b
        old.set(b.load_host(host, self.type))
        with b.loop():
            new.set(change(old.get()))
            found, exchanged = b.exchange_host(host, old.get(), new.get())
            b.break_if(exchanged)
            old.set(found)

    # -- stack -------------------------------------------------------------------------------

    def stack_pointer(self) -> Value:
        """SP, ESP or RSP, as ``i64``."""
        return self.b.load_state(32, f"i{abs(self.shape.stack)}").zext("i64")

    def set_stack_pointer(self, value: Value) -> None:
        """Set as much of RSP as the stack's width says."""
        width = abs(self.shape.stack)
        if width == 16:
            self.b.store_state(32, value.trunc("i16"))
        else:
            self.b.store_state(32, value if width == 64 else value & 0xFFFF_FFFF)

    def stack_linear(self, offset: Value, size: int, *, write: bool) -> Value:
        """A linear address in the stack segment."""
        width = self.shape.stack
        if abs(width) != 64:
            offset = offset & ((1 << abs(width)) - 1)
        if width < 0:
            return self.checked(self.b.const("i64", SS_BASE), offset, size, write)
        return offset

    def push(self, value: Value) -> None:
        """One value below the stack pointer, which moves only if that worked."""
        size = int(value.type[1:]) // 8
        top = self.stack_pointer() - size
        self.store(self.stack_linear(top, size, write=True), value)
        self.set_stack_pointer(top)

    def peek(self, kind: str, above: int = 0) -> Value:
        """What stands ``above`` bytes above the stack pointer."""
        where = self.stack_pointer() + above if above else self.stack_pointer()
        return self.load(self.stack_linear(where, int(kind[1:]) // 8, write=False), kind)

    def drop(self, size: Value | int) -> None:
        """Move the stack pointer up."""
        self.set_stack_pointer(self.stack_pointer() + size)

    # -- flags -------------------------------------------------------------------------------

    def flags(
        self, family: Family, dst: Value, src: Value | None = None, src2: Value | None = None
    ) -> None:
        """Leave lazy flags, if somebody reads them."""
        if not self.shape.flags:
            return
        b = self.b
        b.set("cc_op", cc_op(family, int(dst.type[1:])))
        b.set("cc_dst", dst.zext("i64"))
        if src is not None:
            b.set("cc_src", src.zext("i64"))
        if src2 is not None:
            b.set("cc_src2", src2.zext("i64"))

    def bits(
        self,
        result: Value,
        cf: Value | None = None,
        of: Value | None = None,
        af: Value | None = None,
    ) -> None:
        """Flags of a result, with CF, OF and AF given (or clear)."""
        if not self.shape.flags:
            return
        word = self.b.const("i64", 0)
        for shift, bit in enumerate((cf, of, af)):
            if bit is not None:
                word = word | (bit.zext("i64") << shift)
        self.flags(Family.BITS, result, word)

    def lazy(self) -> Lazy | None:
        """The flags as the translator knows them; None where only the state does."""
        known = self.shape.known
        if known < 0:
            return None
        return Lazy(self.b, Family(known // 4), 8 << (known % 4))

    def arithmetic_flags(self) -> Value:
        """All six arithmetic flags as in EFLAGS, ``i64``."""
        lazy = self.lazy()
        return lazy.word() if lazy else self.b.call("arithmetic_flags")

    def set_flags(self, **changed: Value) -> None:
        """Change some arithmetic flags (``CF=…, ZF=…``) and keep the others."""
        if not self.shape.flags:
            return
        b = self.b
        masks = {getattr(flags, name): value for name, value in changed.items()}
        kept = ARITHMETIC & ~sum(masks)
        word = self.arithmetic_flags() & kept if kept else b.const("i64", 0)
        for flag, value in masks.items():
            word = word | (value.zext("i64") << SHIFTS[flag])
        self.set_flags_word(word)

    def set_flags_word(self, word: Value) -> None:
        """All six arithmetic flags at once."""
        self.b.set("cc_op", 0)
        self.b.set("cc_src", word)

    def carry(self) -> Value:
        """CF, as ``i1``."""
        lazy = self.lazy()
        if lazy is not None and lazy.family not in {Family.INC, Family.DEC}:
            return lazy.cf()
        return self.b.call("arithmetic_flags").trunc("i1")

    def condition(self, code: int) -> Value:
        """A condition of Jcc, SETcc, CMOVcc."""
        lazy = self.lazy()
        if lazy is None:
            word = self.b.call("arithmetic_flags")
            self.b.set("cc_op", 0)  # what was worked out is kept
            self.b.set("cc_src", word)
            lazy = Lazy(self.b, Family.EFLAGS, 64)
        return lazy.condition(code)


SEMANTICS: dict[str, Callable[[Context], None]] = {}
ENDS_ITSELF: set[str] = set()
"""Operations that write their own end; all others go on with the next record."""


def semantic(
    *names: str, ends: bool = False
) -> Callable[[Callable[[Context], None]], Callable[[Context], None]]:
    """Register a semantic function under the names of operations."""

    def register(write: Callable[[Context], None]) -> Callable[[Context], None]:
        for name in names or (write.__name__.strip("_"),):
            SEMANTICS[name] = write
            if ends:
                ENDS_ITSELF.add(name)
        return write

    return register


def write_handler(b: Builder, shape: Shape) -> None:
    """Everything that a record of this shape does."""
    SEMANTICS[shape.operation](Context(b, shape))
    if shape.operation not in ENDS_ITSELF:
        b.next()
