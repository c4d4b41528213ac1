"""Writes semantics as LLVM IR: routines, and the handlers of threaded code.

Handlers are ``tailcc`` functions that end in a ``musttail`` call, so that the vCPU's state
(``%st``), the record (``%ins``), the budget of instructions (``%bud``) and the offset of the TLB
set (``%tlb``) stay in host registers from handler to handler.

Alias scopes tell LLVM that guest memory and the vCPU's state never overlap.  Guest memory is
accessed ``volatile``: other vCPUs and DMA change it, and the guest's order must stand.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from vdisk.vm.cpu.arena import HEADER_FIELDS
from vdisk.vm.cpu.builder import Value, Variable, bits, mask
from vdisk.vm.cpu.llvm_coprocessor import LlvmCoprocessor
from vdisk.vm.cpu.records import HANDLER_OFFSET, LINK_OFFSET, PARAMS, RECORD_SIZE
from vdisk.vm.cpu.routines import PRESERVE
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm.cpu.routines import Routine

STATE = "!alias.scope !2, !noalias !3"
GUEST = "!alias.scope !3, !noalias !2"
RECORDS = "!invariant.load !6"
METADATA = """
!0 = distinct !{!0}
!1 = distinct !{!1, !0}
!4 = distinct !{!4, !0}
!2 = !{!1}
!3 = !{!4}
!5 = !{!"branch_weights", i32 1, i32 2000}
!6 = !{}
!7 = !{!"branch_weights", i32 2000, i32 1}
"""

OUTSIDE = {
    f"declare {PRESERVE} i1 @outside(ptr)",
    f"declare {PRESERVE} void @inside(ptr, i1)",
}
FREE = '"no_callee_saved_registers"'
"""Of functions that only ever end in another one, and of whoever calls the first: none of them
keeps a register for its caller, so all of the host's are theirs."""
HANDLER_PARAMETERS = "ptr noalias %st, ptr %ins, i64 %bud, i64 %tlb"
ITSELF = {"and": True, "or": True, "sub": False, "xor": False}
"""Operations on twice the same: whether that comes out, or zero."""
ARENA_LOCK = HEADER_FIELDS["lock"]


class LlvmVariable(Variable):
    """A stack slot, which LLVM makes a register."""

    def __init__(self, b: LlvmBuilder, kind: str, name: str) -> None:
        self.b, self.type, self.name = b, kind, name

    def get(self) -> Value:
        return self.b.assign(self.type, f"load {self.type}, ptr {self.name}")

    def set(self, value: Value | int) -> None:
        item = self.b.value(self.type, value)
        self.b.emit(f"store {self.type} {item.text}, ptr {self.name}")


class LlvmBuilder(LlvmCoprocessor):
    """Writes one function's body; see :meth:`text`."""

    def __init__(self, known: dict[str, Routine]) -> None:
        self.known = known
        self.used: set[str] = set()  # routines and intrinsics to declare
        self._lines: list[str] = []
        self._allocas: list[str] = []
        self._count = 0
        self._dead = False
        self._merge: str | None = None
        self._ends: list[str] = []
        self._block = "entry"
        """The label behind which is being written."""
        self._pointers: dict[int, str] = {}
        """To the state's fields, as far as they were worked out behind that label."""

    # -- writing -----------------------------------------------------------------------------

    def emit(self, line: str) -> None:
        """One instruction."""
        self._join()
        if not self._dead:
            self._lines.append("  " + line)

    def end(self, *lines: str) -> None:
        """Instructions of which the last is a terminator."""
        for line in lines:
            self.emit(line)
        self._dead = True

    def has_ended(self) -> bool:
        """True behind a terminator, where nothing more is reached."""
        self._join()
        return self._dead

    def name(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def assign(self, kind: str, expression: str) -> Value:
        """The value of an instruction."""
        name = self.name()
        self.emit(f"{name} = {expression}")
        return Value(self, kind, name)

    def _label(self) -> str:
        self._count += 1
        return f"l{self._count}"

    def _jump(self, label: str) -> None:
        """Go on at a label, unless nothing gets here."""
        if not self._dead:
            self._lines.append(f"  br label %{label}")

    def _branch(self, condition: Value, then: str, otherwise: str, weights: str = "") -> None:
        self.emit(f"br i1 {condition.text}, label %{then}, label %{otherwise}{weights}")
        self._dead = True

    def _begin(self, label: str, *, again: bool = False) -> None:
        """What is written from now on stands behind a label, and whoever comes jumps to it.

        ``again``: from behind as well.
        """
        self._lines.append(f"{label}:")
        self._block, self._dead = label, False
        self._pointers.clear()

    def _place(self, label: str, *, again: bool = False) -> None:
        """A label that is also fallen through to."""
        self._jump(label)
        self._begin(label, again=again)

    def new_label(self) -> str:
        """A label for :meth:`place_label`."""
        return self._label()

    def place_label(self, label: str, *, again: bool = True) -> None:
        """A new beginning, reached by jumps; ``again``: also by later ones."""
        self._join()
        if not self._dead:
            self._lines.append("  unreachable")
        self._begin(label, again=again)

    def jump_to_label(self, label: str) -> None:
        """Go on at a label that was or will be placed."""
        self._join()
        self._jump(label)
        self._dead = True

    def _join(self) -> None:
        """Close an ``if_`` that no ``else_`` followed."""
        if self._merge is not None:
            merge, self._merge = self._merge, None
            self._place(merge)

    def body(self) -> str:
        """All that was written."""
        self._join()
        if not self._dead:
            self._lines.append("  unreachable")
        return "\n".join([*self._allocas, *self._lines])

    # -- values ------------------------------------------------------------------------------

    def const(self, kind: str, number: int) -> Value:
        number &= mask(kind)
        text = ("true" if number else "false") if kind == "i1" else str(number)
        return Value(self, kind, text, number)

    def _binary(self, operation: str, left: Value, right: Value) -> Value:
        if left.text == right.text and operation in ITSELF:
            return left if ITSELF[operation] else self.const(left.type, 0)
        return self.assign(left.type, f"{operation} {left.type} {left.text}, {right.text}")

    def _compare(self, relation: str, left: Value, right: Value) -> Value:
        return self.assign("i1", f"icmp {relation} {left.type} {left.text}, {right.text}")

    def _cast(self, how: str, value: Value, kind: str) -> Value:
        return self.assign(kind, f"{how} {value.type} {value.text} to {kind}")

    def select(self, condition: Value, then: Value | int, otherwise: Value) -> Value:
        item = self.value(otherwise.type, then)
        kind = otherwise.type
        return self.assign(
            kind, f"select i1 {condition.text}, {kind} {item.text}, {kind} {otherwise.text}"
        )

    def intrinsic(self, name: str, kind: str, *arguments: Value) -> Value:
        """Call ``@llvm.<name>``, declared as it is used."""
        types = ", ".join(argument.type for argument in arguments)
        self.used.add(f"declare {kind} @llvm.{name}({types})")
        given = ", ".join(f"{argument.type} {argument.text}" for argument in arguments)
        if kind == "void":
            self.emit(f"call void @llvm.{name}({given})")
            return self.const("i1", 0)
        return self.assign(kind, f"call {kind} @llvm.{name}({given})")

    def unary(self, operation: str, value: Value) -> Value:
        if operation in {"ctlz", "cttz"}:
            zero = Value(self, "i1", "false", 0)
            return self.intrinsic(f"{operation}.{value.type}", value.type, value, zero)
        return self.intrinsic(f"{operation}.{value.type}", value.type, value)

    def divide_128(self, dividend: Value, divisor: Value) -> tuple[Value, Value]:
        low, high = dividend.trunc("i64"), (dividend >> 64).trunc("i64")
        both = self.assign(
            "{}",
            'call { i64, i64 } asm "divq $4", "={ax},={dx},0,1,r,~{dirflag},~{fpsr},~{flags}"'
            f"(i64 {low.text}, i64 {high.text}, i64 {divisor.text})",
        ).text
        quotient = self.assign("i64", f"extractvalue {{ i64, i64 }} {both}, 0")
        return quotient, self.assign("i64", f"extractvalue {{ i64, i64 }} {both}, 1")

    # -- control -----------------------------------------------------------------------------

    def variable(self, kind: str, start: Value | int = 0) -> Variable:
        self._count += 1
        variable = LlvmVariable(self, kind, f"%x{self._count}")
        self._allocas.append(f"  {variable.name} = alloca {kind}")
        variable.set(start)
        return variable

    @contextmanager
    def if_(
        self, condition: Value, *, unlikely: bool = False, likely: bool = False
    ) -> Iterator[None]:
        then, otherwise = self._label(), self._label()
        weights = ", !prof !5" if unlikely else ", !prof !7" if likely else ""
        self._branch(condition, then, otherwise, weights)
        self._begin(then)
        yield
        self._join()
        self._merge = otherwise

    @contextmanager
    def else_(self) -> Iterator[None]:
        assert self._merge is not None, "else_ stands directly after if_"
        otherwise, self._merge, merge = self._merge, None, self._label()
        self._jump(merge)
        has_ended = self._dead
        self._begin(otherwise)
        yield
        self._join()
        if not (has_ended and self._dead):
            self._place(merge)

    @contextmanager
    def loop(self) -> Iterator[None]:
        start, end = self._label(), self._label()
        self._join()
        self._place(start, again=True)
        self._ends.append(end)
        yield
        self._join()
        self._ends.pop()
        self._jump(start)
        self._begin(end)

    def break_if(self, condition: Value) -> None:
        go_on = self._label()
        self._branch(condition, self._ends[-1], go_on)
        self._begin(go_on)

    def call(self, routine: str, *arguments: Value) -> Value:
        called = self.known[routine]
        self.used.add(called.declaration)
        given = ", ".join(["ptr %st", *(f"{item.type} {item.text}" for item in arguments)])
        text = f"call {called.convention} {called.result} @{routine}({given})"
        if called.result == "void":
            self.emit(text)
            return self.const("i1", 0)
        return self.assign(called.result, text)

    def return_(self, value: Value | None = None) -> None:
        self.end("ret void" if value is None else f"ret {value.type} {value.text}")

    # -- state, records, memory --------------------------------------------------------------

    def _state_pointer(self, offset: Value | int) -> str:
        self._join()
        number = offset.const if isinstance(offset, Value) else offset
        found = None if number is None else self._pointers.get(number)
        if found is None:
            where = offset.text if isinstance(offset, Value) else str(offset)
            found = self.assign("ptr", f"getelementptr inbounds i8, ptr %st, i64 {where}").text
            if number is not None:
                self._pointers[number] = found
        return found

    def load_state(self, offset: Value | int, kind: str) -> Value:
        pointer = self._state_pointer(offset)
        return self.assign(kind, f"load {kind}, ptr {pointer}, align 1, {STATE}")

    def store_state(self, offset: Value | int, value: Value) -> None:
        pointer = self._state_pointer(offset)
        self.emit(f"store {value.type} {value.text}, ptr {pointer}, align 1, {STATE}")

    def get(self, field: str) -> Value:
        offset, kind = FIELDS[field]
        return self.load_state(offset, kind)

    def set(self, field: str, value: Value | int) -> None:
        offset, kind = FIELDS[field]
        self.store_state(offset, self.value(kind, value))

    def poll(self, field: str) -> Value:
        """A field that another thread may change."""
        offset, kind = FIELDS[field]
        pointer = self._state_pointer(offset)
        return self.assign(kind, f"load volatile {kind}, ptr {pointer}, {STATE}")

    def param(self, name: str) -> Value:
        where = PARAMS[name]
        pointer = self.assign("ptr", f"getelementptr inbounds i8, ptr %ins, i64 {where.offset}")
        extra = "" if name == "link" else ", " + RECORDS
        loaded = self.assign(where.type, f"load {where.type}, ptr {pointer.text}, align 1{extra}")
        wide = loaded.sext(where.to) if where.signed else loaded.zext(where.to)
        return wide if where.scaled == 1 else wide * where.scaled

    def _pointer(self, address: Value) -> str:
        return self.assign("ptr", f"inttoptr i64 {address.text} to ptr").text

    def load_host(self, address: Value, kind: str) -> Value:
        pointer = self._pointer(address)
        return self.assign(kind, f"load volatile {kind}, ptr {pointer}, align 1, {GUEST}")

    def store_host(self, address: Value, value: Value) -> None:
        pointer = self._pointer(address)
        self.emit(f"store volatile {value.type} {value.text}, ptr {pointer}, align 1, {GUEST}")

    def copy_host(self, to: Value, source: Value, length: Value) -> None:
        self.used.add("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        given = f"ptr {self._pointer(to)}, ptr {self._pointer(source)}, i64 {length.text}, i1 1"
        self.emit(f"call void @llvm.memcpy.p0.p0.i64({given})")

    def fill_host(self, address: Value, byte: Value, length: Value) -> None:
        self.used.add("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        given = f"ptr {self._pointer(address)}, i8 {byte.text}, i64 {length.text}, i1 1"
        self.emit(f"call void @llvm.memset.p0.i64({given})")

    def exchange_host(self, address: Value, expected: Value, value: Value) -> tuple[Value, Value]:
        kind, pointer = value.type, self._pointer(address)
        both = self.assign(
            "{}",
            f"cmpxchg ptr {pointer}, {kind} {expected.text}, {kind} {value.text} seq_cst seq_cst,"
            f" align {bits(kind) // 8}",
        ).text
        found = self.assign(kind, f"extractvalue {{ {kind}, i1 }} {both}, 0")
        return found, self.assign("i1", f"extractvalue {{ {kind}, i1 }} {both}, 1")

    def fence(self) -> None:
        self.emit("fence seq_cst")

    def load_table(self, table: str, index: Value, kind: str) -> Value:
        start = self.get(table)
        where = start + index * (bits(kind) // 8)
        return self.assign(kind, f"load volatile {kind}, ptr {self._pointer(where)}, align 1")

    def _arena_pointer(self, where: Value | int) -> str:
        return self._pointer(self.get("arena") + where)

    def arena_load(self, where: Value | int, kind: str) -> Value:
        pointer = self._arena_pointer(where)
        return self.assign(kind, f"load {kind}, ptr {pointer}, align 1, {GUEST}")

    def arena_store(self, where: Value | int, value: Value) -> None:
        pointer = self._arena_pointer(where)
        self.emit(f"store {value.type} {value.text}, ptr {pointer}, align 1, {GUEST}")

    def copy_code(self, where: int, physical: Value, length: Value) -> None:
        self.copy_host(self.get("arena") + where, physical + self.get("memory"), length)

    def acquire(self) -> None:
        lock = self.get("arena") + ARENA_LOCK
        with self.loop():
            free = self.exchange_host(lock, self.const("i64", 0), self.const("i64", 1))[1]
            self.break_if(free)
            self.emit('call void asm sideeffect "pause", ""()')

    def release(self) -> None:
        pointer = self._arena_pointer(ARENA_LOCK)
        self.emit(f"store atomic i64 0, ptr {pointer} release, align 8")

    def callback(self, field: str, kind: str, *arguments: Value) -> Value:
        """Call a C function whose address the state holds, with the host's floating point."""
        target = self._pointer(self.get(field))
        given = ", ".join(f"{item.type} {item.text}" for item in arguments)
        self.used |= OUTSIDE
        inside = self.assign("i1", f"call {PRESERVE} i1 @outside(ptr %st)").text
        if kind == "void":
            self.emit(f"call void {target}({given})")
            result = self.const("i1", 0)
        else:
            result = self.assign(kind, f"call {kind} {target}({given})")
        self.emit(f"call {PRESERVE} void @inside(ptr %st, i1 {inside})")
        return result

    # -- ends --------------------------------------------------------------------------------

    def tlb(self) -> Value:
        return Value(self, "i64", "%tlb")

    def budget(self) -> Value:
        """Instructions left when the present block began."""
        return Value(self, "i64", "%bud")

    def record(self) -> str:
        """The present record, as ``ptr``."""
        return "%ins"

    def _tail(self, target: str, second: str, budget: Value, tlb: Value | None = None) -> None:
        set_ = self.tlb() if tlb is None else tlb
        given = f"ptr %st, {second}, i64 {budget.text}, i64 {set_.text}"
        self.end(f"musttail call tailcc void {target}({given})", "ret void")

    def _to_record(self, record: str, budget: Value) -> None:
        """Execute another record."""
        where = self.assign("ptr", f"getelementptr i8, ptr {record}, i64 {HANDLER_OFFSET}")
        handler = self.assign("ptr", f"load volatile ptr, ptr {where.text}")
        self._tail(handler.text, f"ptr {record}", budget)

    def next(self) -> None:
        record = self.assign("ptr", f"getelementptr i8, ptr {self.record()}, i64 {RECORD_SIZE}")
        self._to_record(record.text, self.budget())

    def again(self, spent: Value | int = 1) -> None:
        budget = self.budget() - spent
        left = budget - (self.param("count") - 1)  # a new block would begin here
        self._interrupted_if((left | self.poll("kick")).slt(0), self.record(), left)
        self._to_record(self.record(), budget)

    def _interrupted_if(self, condition: Value, record: str, budget: Value) -> None:
        """Back to Python, to go on at a record."""
        with self.if_(condition, unlikely=True):
            self.used.add("declare tailcc void @interrupted(ptr, ptr, i64, i64)")
            self._tail("@interrupted", f"ptr {record}", budget)

    def _named_tail(self, name: str) -> None:
        self.used.add(f"declare tailcc void @{name}(ptr, ptr, i64, i64)")
        self._tail(f"@{name}", f"ptr {self.record()}", self.budget())

    def fault(self) -> None:
        self._named_tail("fault")

    def _left(self) -> Value:
        """Instructions left after the present one."""
        return self.budget() - self.param("count")

    def goto(self, linear: Value, *, executed: bool = True, tlb: Value | None = None) -> None:
        self.used.add("declare tailcc void @goto(ptr, i64, i64, i64)")
        budget = self._left() if executed else self._left() + 1
        self._tail("@goto", f"i64 {linear.text}", budget, tlb)

    def timestamp(self) -> Value:
        """Nanoseconds of the host's monotonic clock, or the instructions executed so far."""
        now = self.variable("i64", self.get("tsc_offset"))
        with self.if_(self.get("tsc_virtual").ne(0)):
            now.set(now.get() - self.budget() + self.param("count") - 1)
        with self.else_():
            now.set(now.get() + self.call("host_time"))
        return now.get()

    def fill_state(self, offset: int, length: int, byte: int) -> None:
        self.used.add("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        pointer = self._state_pointer(offset)
        self.emit(f"call void @llvm.memset.p0.i64(ptr {pointer}, i8 {byte}, i64 {length}, i1 0)")

    def follow(self) -> None:
        pointer = f"getelementptr i8, ptr {self.record()}, i64 {LINK_OFFSET}"
        where = self.assign("ptr", pointer).text
        record = self.assign("ptr", f"load volatile ptr, ptr {where}").text
        budget = self._left()
        self._interrupted_if((budget | self.poll("kick")).slt(0), record, budget)
        self._to_record(record, budget)

    def leave(self, reason: int, argument: Value | int = 0, *, after: bool = False) -> None:
        self.set("exit_reason", reason)
        self.set("exit_argument", argument)
        self._named_tail("leave_after" if after else "leave")


def function(convention: str, kind: str, name: str, parameters: str, body: str) -> str:
    """A whole function definition."""
    free = f" {FREE}" if convention.endswith("tailcc") else ""
    return f"define {convention} {kind} @{name}({parameters}){free} {{\nentry:\n{body}\n}}\n"
