"""The coprocessors in LLVM IR: SSE and x87 instructions are the host's, as inline assembly.

Assembly says what it touches (``HIDDEN``): the host's own registers and what its operands point
to, so that LLVM keeps the guest's state in registers around it.
"""

from __future__ import annotations

from abc import abstractmethod

from vdisk.vm.cpu.builder import Builder, Value
from vdisk.vm.cpu.state import FIELDS
from vdisk.vm.cpu.x87_assembly import x87_assembly

XMM = "<2 x i64>"
CLOBBERS = "~{dirflag},~{fpsr},~{flags}"
HIDDEN = "nounwind memory(argmem: readwrite, inaccessiblemem: readwrite)"
X87_MASKED = 0x27
"""Invalid operation, denormal, zero divide, precision: their results do not depend on the mask."""
X87_INITIAL = 0x37F


class LlvmCoprocessor(Builder):
    """The part of :class:`~vdisk.vm.cpu.llvm_builder.LlvmBuilder` that writes them."""

    holds_x87 = True

    @abstractmethod
    def emit(self, line: str) -> None:
        """One instruction."""

    @abstractmethod
    def assign(self, kind: str, expression: str) -> Value:
        """The value of an instruction."""

    @abstractmethod
    def _state_pointer(self, offset: Value | int) -> str: ...

    @abstractmethod
    def _pointer(self, address: Value) -> str: ...

    # -- SSE -----------------------------------------------------------------------------------

    def assembly(self, kind: str, text: str, constraints: str, *arguments: Value) -> str:
        """An instruction of the host; gives the name of the result."""
        given = ", ".join(f"{item.type} {item.text}" for item in arguments)
        return self.assign(
            kind,
            f'call {kind} asm sideeffect "{text}", "{constraints},{CLOBBERS}"({given}) {HIDDEN}',
        ).text

    def _xmm(self, value: Value) -> Value:
        return self.assign(XMM, f"bitcast i128 {value.text} to {XMM}")

    def _from_xmm(self, name: str) -> Value:
        return self.assign("i128", f"bitcast {XMM} {name} to i128")

    def sse(self, name: str, immediate: int | None, left: Value, right: Value) -> Value:
        number = "" if immediate is None else f"$${immediate}, "
        text = f"{name} {number}$2, $0"
        return self._from_xmm(self.assembly(XMM, text, "=x,0,x", self._xmm(left), self._xmm(right)))

    def sse_shift(self, name: str, immediate: int, value: Value) -> Value:
        return self._from_xmm(
            self.assembly(XMM, f"{name} $${immediate}, $0", "=x,0", self._xmm(value))
        )

    def sse_blend(self, name: str, left: Value, right: Value, choice: Value) -> Value:
        given = [self._xmm(item) for item in (left, right, choice)]
        return self._from_xmm(self.assembly(XMM, f"{name} %xmm0, $2, $0", "=x,0,x,{xmm0}", *given))

    def _flag_word(self, kind: str, results: str, first: int) -> Value:
        """ZF, PF, CF, SF and OF of five byte results, as in EFLAGS."""
        total = self.const("i64", 0)
        for place, shift in enumerate((6, 2, 0, 7, 11)):
            byte = self.assign("i8", f"extractvalue {kind} {results}, {first + place}")
            total = total | (byte.zext("i64") << shift)
        return total

    def sse_flags(self, name: str, left: Value, right: Value) -> Value:
        text = f"{name} $6, $5\\0Asetz $0\\0Asetp $1\\0Asetc $2\\0Asets $3\\0Aseto $4"
        kind = "{ i8, i8, i8, i8, i8 }"
        results = self.assembly(
            kind, text, "=&q,=&q,=&q,=&q,=&q,x,x", self._xmm(left), self._xmm(right)
        )
        return self._flag_word(kind, results, 0)

    def sse_string(
        self,
        name: str,
        immediate: int,
        operands: tuple[Value, Value],
        lengths: tuple[Value, Value],
    ) -> tuple[Value, Value]:
        text = (
            f"{name} $${immediate}, $8, $7\\0Asetz $2\\0Asetp $3\\0Asetc $4\\0Asets $5\\0Aseto $6"
        )
        kind = f"{{ i32, {XMM}, i8, i8, i8, i8, i8 }}"
        given = [self._xmm(operands[0]), self._xmm(operands[1]), *lengths]
        constraints = "=&{cx},=&{xmm0},=&q,=&q,=&q,=&q,=&q,x,x,{ax},{dx}"
        results = self.assembly(kind, text, constraints, *given)
        total = self._flag_word(kind, results, 2)
        if name.endswith("i"):
            return self.assign("i32", f"extractvalue {kind} {results}, 0").zext("i128"), total
        return self._from_xmm(self.assign(XMM, f"extractvalue {kind} {results}, 1").text), total

    def sse_to_register(self, name: str, kind: str, value: Value) -> Value:
        suffix = "q" if kind == "i64" and name.startswith("cvt") else ""
        register = "${0:q}" if kind == "i64" else "${0:k}"
        text = f"{name}{suffix} $1, {register}"
        return Value(self, kind, self.assembly(kind, text, "=r,x", self._xmm(value)))

    def sse_from_register(self, name: str, left: Value, value: Value) -> Value:
        text = f"{name}{'q' if value.type == 'i64' else 'l'} $2, $0"
        return self._from_xmm(self.assembly(XMM, text, "=x,0,r", self._xmm(left), value))

    # -- x87, the registers in the state -------------------------------------------------------

    def x87(self, name: str, first: Value, second: Value) -> tuple[Value, Value, Value]:
        """Masked but for overflow and underflow, whose unmasked results the host scales itself."""
        zero = self.const("i128", 0)
        places = ("scratch0", "scratch1", "scratch2", "scratch3")
        for place, value in zip(places, (first, second, zero, zero), strict=True):
            self.set(place, value)
        self.set("fpu_host", self.get("fpu_control") | X87_MASKED | X87_INITIAL << 16)
        pointers = [self._state_pointer(FIELDS[place].offset) for place in places]
        pointers.append(self._state_pointer(FIELDS["fpu_host"].offset))
        given = ", ".join(f"ptr {pointer}" for pointer in pointers)
        clobbers = "~{st},~{st(1)},~{st(2)},~{memory},~{dirflag},~{fpsr},~{flags}"
        text = "\\0A".join(["fldcw ($5)", *x87_assembly(name), "fldcw 2($5)"])
        status = self.assign(
            "i16",
            f'call i16 asm sideeffect "{text}", "=&{{ax}},r,r,r,r,r,{clobbers}"({given})',
        )
        return self.get("scratch2"), self.get("scratch3"), status.zext("i32")

    # -- x87, the registers in the host's ------------------------------------------------------

    def x87_host(self, code: bytes, place: Value | str | None = None) -> None:
        text = _bytes(code)
        if place is None:
            self.emit(f'call void asm sideeffect "{text}", "{CLOBBERS}"() {HIDDEN}')
            return
        if isinstance(place, str):
            pointer = self._state_pointer(FIELDS[place].offset)
        else:
            pointer = self._pointer(place)
        self.emit(f'call void asm sideeffect "{text}", "{{ax}},{CLOBBERS}"(ptr {pointer}) {HIDDEN}')

    def x87_host_if(self, index: int, condition: Value) -> None:
        text = f"testl $0, $0\\0Afcmovne %st({index}), %st"
        word = condition.zext("i32")
        self.emit(f'call void asm sideeffect "{text}", "r,{CLOBBERS}"(i32 {word.text}) {HIDDEN}')

    def x87_host_flags(self, code: bytes) -> Value:
        kind = "{ i8, i8, i8 }"
        text = f"{_bytes(code)}\\0Asetz $0\\0Asetp $1\\0Asetc $2"
        results = self.assign(
            kind, f'call {kind} asm sideeffect "{text}", "=&q,=&q,=&q,{CLOBBERS}"() {HIDDEN}'
        ).text
        total = self.const("i64", 0)
        for place, shift in enumerate((6, 2, 0)):
            byte = self.assign("i8", f"extractvalue {kind} {results}, {place}")
            total = total | (byte.zext("i64") << shift)
        return total

    def x87_host_status(self) -> Value:
        text = f'call i16 asm sideeffect "fnstsw %ax", "={{ax}},{CLOBBERS}"() {HIDDEN}'
        return self.assign("i16", text)


def _bytes(code: bytes) -> str:
    return ".byte " + ", ".join(f"{byte:#x}" for byte in code)
