"""Writes semantics as Python source: the reference interpreter.

A handler is a function ``h(S, ins)`` of the state's bytes and the address of its record, that
returns the address of the next one.  The names it uses (guest memory ``M``, the arena ``A``, the
engine ``E``) come from the namespace it is executed in.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from vdisk.vm.cpu.builder import Builder, Value, Variable, bits, mask
from vdisk.vm.cpu.records import PARAMS, RECORD_SIZE
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm.cpu.routines import Routine

_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
_WRAPPING = {"add", "sub", "mul", "shl"}
_RELATIONS = {"eq": "==", "ne": "!=", "ult": "<", "ule": "<=", "ugt": ">", "uge": ">="}
_SIGNED = {"slt": "<", "sle": "<=", "sgt": ">", "sge": ">="}


class PythonVariable(Variable):
    """A local variable."""

    def __init__(self, b: PythonBuilder, kind: str, name: str) -> None:
        self.b, self.type, self.name = b, kind, name

    def get(self) -> Value:
        return self.b.assign(self.type, self.name)

    def set(self, value: Value | int) -> None:
        self.b.emit(f"{self.name} = {self.b.value(self.type, value).text}")


class PythonBuilder(Builder):
    """Writes one function's body; see :meth:`body`."""

    def __init__(self, known: dict[str, Routine]) -> None:
        self.known = known
        self._lines: list[str] = []
        self._depth = 1
        self._count = 0

    # -- writing -----------------------------------------------------------------------------

    def emit(self, line: str) -> None:
        """One statement."""
        self._lines.append("    " * self._depth + line)

    def assign(self, kind: str, expression: str) -> Value:
        """The value of an expression."""
        self._count += 1
        self.emit(f"v{self._count} = {expression}")
        return Value(self, kind, f"v{self._count}")

    def body(self) -> str:
        """All that was written."""
        return "\n".join(self._lines) or "    pass"

    # -- values ------------------------------------------------------------------------------

    def const(self, kind: str, number: int) -> Value:
        number &= mask(kind)
        return Value(self, kind, str(number), number)

    def _binary(self, operation: str, left: Value, right: Value) -> Value:
        kind, width = left.type, bits(left.type)
        a, c = left.text, right.text
        if operation in _OPERATORS:
            text = f"{a} {_OPERATORS[operation]} {c}"
        elif operation == "shl":
            text = f"{a} << {c}"
        elif operation == "lshr":
            text = f"{a} >> {c}"
        elif operation == "ashr":
            text = f"(signed({a}, {width}) >> {c}) & {mask(kind)}"
        else:
            text = f"{operation}({a}, {c}, {width})"
        return self.assign(kind, f"({text}) & {mask(kind)}" if operation in _WRAPPING else text)

    def _compare(self, relation: str, left: Value, right: Value) -> Value:
        if relation in _SIGNED:
            width, sign = bits(left.type), _SIGNED[relation]
            return self.assign(
                "i1", f"signed({left.text}, {width}) {sign} signed({right.text}, {width})"
            )
        return self.assign("i1", f"{left.text} {_RELATIONS[relation]} {right.text}")

    def _cast(self, how: str, value: Value, kind: str) -> Value:
        if how == "sext":
            return self.assign(kind, f"signed({value.text}, {bits(value.type)}) & {mask(kind)}")
        if how == "trunc":
            return self.assign(kind, f"{value.text} & {mask(kind)}")
        return (
            self.assign(kind, f"int({value.text})")
            if value.type == "i1"
            else Value(self, kind, value.text)
        )

    def select(self, condition: Value, then: Value | int, otherwise: Value) -> Value:
        item = self.value(otherwise.type, then)
        return self.assign(otherwise.type, f"{item.text} if {condition.text} else {otherwise.text}")

    def unary(self, operation: str, value: Value) -> Value:
        return self.assign(value.type, f"{operation}({value.text}, {bits(value.type)})")

    def divide_128(self, dividend: Value, divisor: Value) -> tuple[Value, Value]:
        quotient = self.assign("i64", f"{dividend.text} // {divisor.text}")
        return quotient, self.assign("i64", f"{dividend.text} % {divisor.text}")

    # -- SSE -----------------------------------------------------------------------------------

    def sse(self, name: str, immediate: int | None, left: Value, right: Value) -> Value:
        text = f"sse({name!r}, S, {left.text}, {right.text}, {immediate})"
        return self.assign("i128", text)

    def sse_shift(self, name: str, immediate: int, value: Value) -> Value:
        return self.assign("i128", f"sse({name!r}, S, {value.text}, {immediate}, None)")

    def sse_blend(self, name: str, left: Value, right: Value, choice: Value) -> Value:
        text = f"sse_blend({name!r}, {left.text}, {right.text}, {choice.text})"
        return self.assign("i128", text)

    def sse_flags(self, name: str, left: Value, right: Value) -> Value:
        return self.assign("i64", f"sse_flags({name!r}, S, {left.text}, {right.text})")

    def sse_string(
        self,
        name: str,
        immediate: int,
        operands: tuple[Value, Value],
        lengths: tuple[Value, Value],
    ) -> tuple[Value, Value]:
        given = ", ".join(item.text for item in (*operands, *lengths))
        both = self.assign("i128", f"sse_string({name!r}, {immediate}, {given})")
        return self.assign("i128", f"{both.text}[0]"), self.assign("i64", f"{both.text}[1]")

    def sse_to_register(self, name: str, kind: str, value: Value) -> Value:
        return self.assign(kind, f"sse_to_register({name!r}, {bits(kind)}, S, {value.text})")

    def sse_from_register(self, name: str, left: Value, value: Value) -> Value:
        width = bits(value.type)
        text = f"sse_from_register({name!r}, {width}, S, {left.text}, {value.text})"
        return self.assign("i128", text)

    def x87(self, name: str, first: Value, second: Value) -> tuple[Value, Value, Value]:
        control = self.get("fpu_control").text
        made = self.assign("i128", f"x87({name!r}, {control}, {first.text}, {second.text})").text
        return (
            self.assign("i128", f"{made}[0]"),
            self.assign("i128", f"{made}[1]"),
            self.assign("i32", f"{made}[2]"),
        )

    # -- control -----------------------------------------------------------------------------

    def variable(self, kind: str, start: Value | int = 0) -> Variable:
        self._count += 1
        variable = PythonVariable(self, kind, f"x{self._count}")
        variable.set(start)
        return variable

    @contextmanager
    def _block(self, head: str) -> Iterator[None]:
        self.emit(head)
        self._depth += 1
        self.emit("pass")
        yield
        self._depth -= 1

    @contextmanager
    def if_(
        self, condition: Value, *, unlikely: bool = False, likely: bool = False
    ) -> Iterator[None]:
        with self._block(f"if {condition.text}:"):
            yield

    @contextmanager
    def else_(self) -> Iterator[None]:
        with self._block("else:"):
            yield

    @contextmanager
    def loop(self) -> Iterator[None]:
        with self._block("while True:"):
            yield

    def break_if(self, condition: Value) -> None:
        self.emit(f"if {condition.text}: break")

    def call(self, routine: str, *arguments: Value) -> Value:
        called = self.known[routine]
        text = f"{routine}({', '.join(['S', *(item.text for item in arguments)])})"
        if called.result == "void":
            self.emit(text)
            return self.const("i1", 0)
        return self.assign(called.result, text)

    def return_(self, value: Value | None = None) -> None:
        self.emit("return" if value is None else f"return {value.text}")

    # -- state, records, memory --------------------------------------------------------------

    def load_state(self, offset: Value | int, kind: str) -> Value:
        where = offset.text if isinstance(offset, Value) else str(offset)
        return self.assign(kind, f"load(S, {where}, {bits(kind) // 8})")

    def store_state(self, offset: Value | int, value: Value) -> None:
        where = offset.text if isinstance(offset, Value) else str(offset)
        self.emit(f"store(S, {where}, {bits(value.type) // 8}, {value.text})")

    def get(self, field: str) -> Value:
        offset, kind = FIELDS[field]
        return self.load_state(offset, kind)

    def set(self, field: str, value: Value | int) -> None:
        offset, kind = FIELDS[field]
        self.store_state(offset, self.value(kind, value))

    def poll(self, field: str) -> Value:
        """A field that another thread may change."""
        return self.get(field)

    def param(self, name: str) -> Value:
        where = PARAMS[name]
        value = self.assign(where.type, f"load(A, ins + {where.offset}, {bits(where.type) // 8})")
        wide = value.sext(where.to) if where.signed else value.zext(where.to)
        return wide if where.scaled == 1 else wide * where.scaled

    def load_host(self, address: Value, kind: str) -> Value:
        return self.assign(kind, f"load(M, {address.text}, {bits(kind) // 8})")

    def store_host(self, address: Value, value: Value) -> None:
        self.emit(f"store(M, {address.text}, {bits(value.type) // 8}, {value.text})")

    def copy_host(self, to: Value, source: Value, length: Value) -> None:
        a, c, n = to.text, source.text, length.text
        self.emit(f"M[{a}:{a} + {n}] = bytes(M[{c}:{c} + {n}])")

    def fill_host(self, address: Value, byte: Value, length: Value) -> None:
        a, n = address.text, length.text
        self.emit(f"M[{a}:{a} + {n}] = bytes([{byte.text}]) * {n}")

    def exchange_host(self, address: Value, expected: Value, value: Value) -> tuple[Value, Value]:
        found = self.load_host(address, value.type)
        same = found.eq(expected)
        with self.if_(same):
            self.store_host(address, value)
        return found, same

    def fence(self) -> None:
        """One record is executed at a time."""

    def load_table(self, table: str, index: Value, kind: str) -> Value:
        return self.assign(kind, f"E.{table}({index.text})")

    def arena_load(self, where: Value | int, kind: str) -> Value:
        place = self.value("i64", where).text
        return self.assign(kind, f"load(A, {place}, {bits(kind) // 8})")

    def arena_store(self, where: Value | int, value: Value) -> None:
        place = self.value("i64", where).text
        self.emit(f"store(A, {place}, {bits(value.type) // 8}, {value.text})")

    def copy_code(self, where: int, physical: Value, length: Value) -> None:
        n = length.text
        source = f"M[{physical.text}:{physical.text} + {n}]"
        self.emit(f"A[{where}:{where} + {n}] = {source}")

    def acquire(self) -> None:
        self.emit("E.acquire()")

    def release(self) -> None:
        self.emit("E.release()")

    def callback(self, field: str, kind: str, *arguments: Value) -> Value:
        """Call a function of the engine."""
        text = f"E.{field}({', '.join(item.text for item in arguments)})"
        if kind == "void":
            self.emit(text)
            return self.const("i1", 0)
        return self.assign(kind, text)

    # -- ends --------------------------------------------------------------------------------

    def tlb(self) -> Value:
        return self.get("tlb_current")

    def next(self) -> None:
        self.emit(f"return ins + {RECORD_SIZE}")

    def again(self, spent: Value | int = 1) -> None:
        self.emit(f"return E.again(ins, {self.value('i64', spent).text})")

    def fault(self) -> None:
        self.emit("return E.fault(ins)")

    def timestamp(self) -> Value:
        return self.assign("i64", "E.timestamp()")

    def fill_state(self, offset: int, length: int, byte: int) -> None:
        self.emit(f"S[{offset}:{offset + length}] = bytes([{byte}]) * {length}")

    def goto(self, linear: Value, *, executed: bool = True, tlb: Value | None = None) -> None:
        spent = self.param("count").text
        self.emit(f"return E.goto({linear.text}, {spent}{'' if executed else ' - 1'})")

    def follow(self) -> None:
        self.emit(f"return E.follow({self.param('link').text}, {self.param('count').text})")

    def leave(self, reason: int, argument: Value | int = 0, *, after: bool = False) -> None:
        self.set("exit_reason", reason)
        self.set("exit_argument", argument)
        self.emit(f"return E.leave(ins, {after})")
