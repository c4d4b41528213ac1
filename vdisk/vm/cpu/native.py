"""The frame around native handlers: entering and leaving generated code, finding code.

These few functions are tail-called like handlers but belong to no instruction:

``enter``        C calls it; goes to ``rip``
``goto``         finds the code of a linear address by the TLB's code entries (``find_code``: has
                 it made, or entered there)
``fault``        the present record's instruction raised what the state describes
``leave``        back to Python at the present instruction (``leave_after``: behind it)
``stopped``      where a block would begin, but the budget is used up or something waits: takes an
               interrupt if it is one, and goes back to Python else (``region_stopped``: in a
               region of the second tier)
``interrupted``  the same at a record that was about to be executed
``leave_at``, ``fault_at``  like ``leave`` and ``fault``, by address: for code without records
``resume``       goes on with a record in the middle of a block, for such code
"""

from __future__ import annotations

from vdisk.vm.cpu import (
    code_pages,
    debug,
    delivery,
    delivery_flat,
    delivery_real,
    faults,
    flags,
    gather,
    mmu,
    paging,
    segments,
    tlb,
    translation,
)
from vdisk.vm.cpu.builder import Value
from vdisk.vm.cpu.events import NO_VECTOR
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.llvm_builder import FREE, HANDLER_PARAMETERS, METADATA, LlvmBuilder, function
from vdisk.vm.cpu.native_mxcsr import MXCSR_ROUTINES
from vdisk.vm.cpu.native_x87 import x87_enter, x87_leave
from vdisk.vm.cpu.records import PARAMS, RECORD_SIZE
from vdisk.vm.cpu.routines import PRESERVE, ROUTINES, Routine, page_of
from vdisk.vm.cpu.state import CODE_TLB, FIELDS, TLB_USER

KNOWN = {
    **ROUTINES,
    "simd_begin": Routine("simd_begin", (), "void", lambda b: None),
    "simd_end": Routine("simd_end", (), "void", lambda b: None),
    "read_mxcsr": Routine("read_mxcsr", (), "i32", lambda b: None),
    "write_mxcsr": Routine("write_mxcsr", ("i32",), "void", lambda b: None),
    "x87_enter": Routine("x87_enter", (), "void", x87_enter),
    "x87_leave": Routine("x87_leave", (), "void", x87_leave),
    "outside": Routine("outside", (), "i1", lambda b: None),
    "inside": Routine("inside", ("i1",), "void", lambda b: None),
    "host_time": Routine("host_time", (), "i64", lambda b: None),
    "find_code_page": Routine("find_code_page", ("i64", "i64"), "i64", lambda b: None),
}
_REGISTER_ROUTINES = (
    debug,
    delivery,
    delivery_flat,
    delivery_real,
    segments,
    tlb,
    translation,
    code_pages,
    gather,
)
GOTO_PARAMETERS = "ptr noalias %st, i64 %linear, i64 %bud, i64 %tlb"


def _argument(b: LlvmBuilder, name: str) -> Value:
    return Value(b, "i64", f"%{name}")


def _set_rip(b: LlvmBuilder, linear: Value) -> None:
    """Store the instruction pointer that a linear address means."""
    rip = linear - b.get("cs_base")
    b.set("rip", b.select(b.get("mode").eq(64), rip, rip & 0xFFFF_FFFF))


def _exit(b: LlvmBuilder, linear: Value, budget: Value, reason: int) -> None:
    _set_rip(b, linear)
    b.set("budget", budget)
    b.set("exit_reason", reason)
    b.return_()


def _record_linear(b: LlvmBuilder) -> Value:
    return b.get("code_page") + b.param("off")


def _goto(b: LlvmBuilder) -> None:
    """Calls nothing, so that the usual way needs no stack."""
    linear, budget, tlb = _argument(b, "linear"), _argument(b, "bud"), b.tlb()
    with b.if_((budget | b.poll("kick")).slt(0), unlikely=True):
        _stop(b, linear, budget)
    place = mmu.tlb_place(tlb, CODE_TLB, linear)
    with b.if_(b.load_state(place, "i64").eq(page_of(linear)), likely=True):
        number = b.load_host(b.load_state(place + 8, "i64") + (linear & 0xFFF) * 4, "i32")
        with b.if_(number.sgt(0), likely=True):
            b.set("code_page", page_of(linear))
            _to_record(b, _address_of(b, number), budget)
    given = f"ptr %st, i64 {linear.text}, i64 {budget.text}, i64 {tlb.text}"
    b.end(f"musttail call tailcc void @find_code({given})", "ret void")


def _address_of(b: LlvmBuilder, number: Value) -> Value:
    return b.get("arena") + number.zext("i64") * RECORD_SIZE


def _find_code(b: LlvmBuilder) -> None:
    """What ``goto`` does where the page has no code entry, or nothing is translated there."""
    linear, budget, tlb = _argument(b, "linear"), _argument(b, "bud"), b.tlb()
    number, record = b.variable("i32"), b.variable("i64")
    found = b.call("find_code_page", tlb, linear)
    with b.if_(b.get("pending").ne(0), unlikely=True):
        _raise(b, linear, budget - 1)
    with b.if_(found.ne(0)):
        number.set(b.load_host(found + (linear & 0xFFF) * 4, "i32"))
    with b.if_(number.get().sgt(0)):
        record.set(_address_of(b, number.get()))
    with b.else_():
        made = b.call("translate_here", tlb, linear)
        with b.if_(made.eq(0), unlikely=True):
            _exit(b, linear, budget, Exit.TRANSLATE)
        record.set(made)
    b.set("code_page", page_of(linear))
    _to_record(b, record.get(), budget)


def _find_code_page(b: LlvmBuilder, tlb: Value, linear: Value) -> None:
    """The code array of a page, remembered in its code entry; 0 if it has none yet."""
    user = tlb.eq(TLB_USER).zext("i64")
    physical = b.call("walk", linear, b.const("i64", paging.EXECUTE), user)
    with b.if_(physical.eq(paging.NOWHERE) | physical.uge(b.get("memory_top"))):
        b.return_(b.const("i64", 0))
    codes = b.load_table("code_table", physical >> 12, "i64")
    with b.if_(codes.ne(0)):
        place = mmu.tlb_place(tlb, CODE_TLB, linear)
        mmu.note_entry(b, place)
        b.store_state(place, page_of(linear))
        b.store_state(place + 8, codes)
    b.return_(codes)


def _fault(b: LlvmBuilder) -> None:
    """An instruction that faults counts too, so that faults without end use up the budget."""
    _raise(b, _record_linear(b), _argument(b, "bud") - b.param("count"))


WITH_ERROR_CODE = sum(1 << vector for vector in faults.WITH_ERROR_CODE)


def _raise(b: LlvmBuilder, linear: Value, budget: Value) -> None:
    """Deliver the fault that the state describes, here or in Python."""
    b.set("pending", 0)
    word = b.get("eflags")
    is_long = b.get("mode").eq(64)
    vector = b.get("fault_vector").zext("i64")
    usual = b.get("careful").eq(0) & vector.ult(32)
    with b.if_((is_long | b.get("flat").ne(0)) & usual):
        b.set("rip", linear)  # segments are flat
        with b.if_(vector.eq(faults.PF)):
            b.set("cr2", b.get("fault_address"))
        b.set("eflags", word | flags.RF)
        with_error = (b.const("i64", WITH_ERROR_CODE) >> vector) & 1
        error = b.get("fault_error").zext("i64")
        done = b.variable("i64")
        with b.if_(is_long):
            done.set(b.call("deliver_long", vector, error, with_error))
        with b.else_():
            done.set(b.call("deliver_flat", vector, error, with_error))
        with b.if_(done.get().ne(0)):
            _go(b, b.get("rip"), budget)
    _exit(b, linear, budget, Exit.FAULT)


def _go(b: LlvmBuilder, linear: Value, budget: Value) -> None:
    given = f"i64 {linear.text}, i64 {budget.text}, i64 {b.get('tlb_current').text}"
    b.end(f"musttail call tailcc void @goto(ptr %st, {given})", "ret void")


def _leave(b: LlvmBuilder, *, after: bool) -> None:
    budget = _argument(b, "bud") - (b.param("count") - (0 if after else 1))
    linear = _record_linear(b)
    _set_rip(b, linear + b.param("len") if after else linear)
    b.set("budget", budget)
    b.return_()


def _stop(b: LlvmBuilder, linear: Value, budget: Value) -> None:
    given = f"ptr %st, i64 {linear.text}, i64 {budget.text}, i64 %tlb"
    b.end(f"musttail call tailcc void @stopped({given})", "ret void")


def _interrupted(b: LlvmBuilder) -> None:
    _stop(b, _record_linear(b), _argument(b, "bud"))


def _stopped(b: LlvmBuilder, reason: Exit) -> None:
    """Leaving native code for an interrupt costs more than all that has to be done for it."""
    budget = _argument(b, "bud")
    _set_rip(b, _argument(b, "linear"))
    b.set("budget", budget)
    b.set("exit_reason", reason)
    waits = b.poll("irq_pending").ne(0) & (b.get("eflags") & flags.IF).ne(0)
    is_long = b.get("mode").eq(64)
    usual = b.get("careful").eq(0) & (is_long | b.get("flat").ne(0))
    with b.if_(waits & usual & budget.sge(0)):
        b.set("kick", 0)  # what sets it again has something that acknowledge() may not have seen
        vector = b.callback("acknowledge", "i64", b.get("vcpu"))
        with b.if_(vector.ne(NO_VECTOR)):
            _take_interrupt(b, vector, budget, is_long)
    b.return_()


def _take_interrupt(b: LlvmBuilder, vector: Value, budget: Value, is_long: Value) -> None:
    b.set("eflags", b.get("eflags") & ~flags.RF)
    done, nothing = b.variable("i64"), b.const("i64", 0)
    with b.if_(is_long):
        done.set(b.call("deliver_long", vector, nothing, nothing))
    with b.else_():
        done.set(b.call("deliver_flat", vector, nothing, nothing))
    with b.if_(done.get().ne(0), likely=True):
        delivery.interrupt_wanted(b, b.get("eflags").zext("i64"))  # behind a trap gate
        _go(b, b.get("rip"), budget)  # segments are flat
    b.set("exit_reason", Exit.EXTERNAL)
    b.set("exit_argument", vector)
    b.return_()


def _leave_at(b: LlvmBuilder) -> None:
    _set_rip(b, _argument(b, "linear"))
    b.set("budget", _argument(b, "bud"))
    b.return_()


def _fault_at(b: LlvmBuilder) -> None:
    _raise(b, _argument(b, "linear"), _argument(b, "bud"))


def _resume(b: LlvmBuilder) -> None:
    """Go on with a record of the block at ``linear``, or (it was dropped) at its address.

    ``%place``: how many records of the block stand before it (bits 0-15), and what it holds as
    ``off`` (16-31) and ``count``.
    """
    linear, budget, tlb = _argument(b, "linear"), _argument(b, "bud"), b.tlb()
    place = _argument(b, "place")
    offset, count = (place >> 16) & 0xFFFF, place >> 32
    codes = b.call("find_code_page", tlb, linear)
    b.set("pending", 0)  # where the page is not there any more, goto finds that out
    with b.if_(codes.ne(0)):
        number = b.load_host(codes + (linear & 0xFFF) * 4, "i32")
        with b.if_(number.sgt(0)):
            record = b.get("arena") + (number.zext("i64") + (place & 0xFFFF)) * RECORD_SIZE
            is_it = b.load_host(record + PARAMS["off"].offset, "i16").zext("i64").eq(offset)
            is_it = is_it & b.load_host(record + PARAMS["count"].offset, "i8").zext("i64").eq(count)
            with b.if_(is_it):
                _to_record(b, record, budget)
    there = page_of(linear) + offset
    given = f"i64 {there.text}, i64 {(budget - (count - 1)).text}, i64 {tlb.text}"
    b.end(f"musttail call tailcc void @goto(ptr %st, {given})", "ret void")


def _to_record(b: LlvmBuilder, record: Value, budget: Value) -> None:
    pointer = b.assign("ptr", f"inttoptr i64 {record.text} to ptr").text
    handler = b.assign("ptr", f"load volatile ptr, ptr {pointer}").text
    given = f"ptr %st, ptr {pointer}, i64 {budget.text}, i64 %tlb"
    b.end(f"musttail call tailcc void {handler}({given})", "ret void")


def _entry(b: LlvmBuilder) -> None:
    linear = b.get("rip") + b.get("cs_base")
    wide = b.select(b.get("mode").eq(64), linear, linear & 0xFFFF_FFFF)
    budget, tlb = b.get("budget"), b.get("tlb_current")
    b.emit(f"call {PRESERVE} void @guest_mxcsr(ptr %st)")
    given = f"ptr %st, i64 {wide.text}, i64 {budget.text}, i64 {tlb.text}"
    # Not inlined: then it would be the handler that is called here, and not as FREE.
    b.emit(f"call tailcc void @goto({given}) noinline {FREE}")
    b.emit(f"call {PRESERVE} void @own_mxcsr(ptr %st)")
    b.return_()


_HOST_TIME = f"""
declare i32 @clock_gettime(i32, ptr)
define {PRESERVE} i64 @host_time(ptr %st) {{
  %time = alloca [2 x i64]
  %failed = call i32 @clock_gettime(i32 1, ptr %time)
  %s = load i64, ptr %time
  %np = getelementptr i8, ptr %time, i64 8
  %n = load i64, ptr %np
  %sn = mul i64 %s, 1000000000
  %t = add i64 %sn, %n
  ret i64 %t
}}
"""
"""CLOCK_MONOTONIC in nanoseconds, which is time.perf_counter_ns() on Linux."""


_ENTER_AT = f"""
  %bp = getelementptr i8, ptr %st, i64 {FIELDS["budget"].offset}
  %bud = load i64, ptr %bp
  %tp = getelementptr i8, ptr %st, i64 {FIELDS["tlb_current"].offset}
  %tlb = load i64, ptr %tp
  %h = load ptr, ptr %ins
  call {PRESERVE} void @guest_mxcsr(ptr %st)
  call tailcc void %h(ptr %st, ptr %ins, i64 %bud, i64 %tlb) {FREE}
  call {PRESERVE} void @own_mxcsr(ptr %st)
  ret void
"""


def _c_wrapper(name: str) -> str:
    """A routine that ctypes can call."""
    called = KNOWN[name]
    arguments = [f"{kind} %a{number}" for number, kind in enumerate(called.arguments)]
    given = ", ".join(["ptr %st", *arguments])
    text = f"call {called.convention} {called.result} @{name}({given})"
    body = (
        f"  {text}\n  ret void"
        if called.result == "void"
        else f"  %r = {text}\n  ret {called.result} %r"
    )
    return function("", called.result, f"c_{name}", given, body)


C_ROUTINES = (
    *("walk", "slow_load", "slow_store", "check_write", "arithmetic_flags"),
    "load_pdptes",
    *("drop_write_entries", "find_code_page", "deliver_long", "deliver_flat"),
    *("translate_page", "translate_bytes", "code_array", "drop_code", "touches_code"),
    "gather",
    *("lock_arena", "unlock_arena"),
)
SHORT = {"touches_code", "gather"}


def runtime_module() -> str:
    """The LLVM module of all routines and of the functions above."""
    parts: list[str] = []
    for called in (*ROUTINES.values(), KNOWN["x87_enter"], KNOWN["x87_leave"]):
        b = LlvmBuilder(ROUTINES)
        arguments = [Value(b, kind, f"%a{n}") for n, kind in enumerate(called.arguments)]
        called.write(b, *arguments)
        given = ", ".join(["ptr noalias %st", *(f"{item.type} {item.text}" for item in arguments)])
        convention = called.convention
        parts.append(function(convention, called.result, called.name, given, b.body()))
        parts += [line for line in sorted(b.used) if "@llvm." in line]
    b = LlvmBuilder(ROUTINES)
    _find_code_page(b, b.tlb(), _argument(b, "linear"))
    parameters = "ptr noalias %st, i64 %tlb, i64 %linear"
    parts.append(function(PRESERVE, "i64", "find_code_page", parameters, b.body()))
    for name, parameters, write in (
        ("goto", GOTO_PARAMETERS, _goto),
        ("find_code", GOTO_PARAMETERS, _find_code),
        ("fault", HANDLER_PARAMETERS, _fault),
        ("leave", HANDLER_PARAMETERS, lambda b: _leave(b, after=False)),
        ("leave_after", HANDLER_PARAMETERS, lambda b: _leave(b, after=True)),
        ("interrupted", HANDLER_PARAMETERS, _interrupted),
        ("stopped", GOTO_PARAMETERS, lambda b: _stopped(b, Exit.INTERRUPTED)),
        ("region_stopped", GOTO_PARAMETERS, lambda b: _stopped(b, Exit.IN_REGION)),
        ("leave_at", GOTO_PARAMETERS, _leave_at),
        ("fault_at", GOTO_PARAMETERS, _fault_at),
        ("resume", GOTO_PARAMETERS + ", i64 %place", _resume),
    ):
        b = LlvmBuilder(KNOWN)
        write(b)
        parts.append(function("tailcc", "void", name, parameters, b.body()))
        parts += [line for line in sorted(b.used) if "@llvm." in line]
    b = LlvmBuilder(KNOWN)
    _entry(b)
    parts.append(function("", "void", "enter", "ptr noalias %st", b.body()))
    parts.append(function("", "void", "enter_at", "ptr noalias %st, ptr %ins", _ENTER_AT))
    parts += [_c_wrapper(name) for name in C_ROUTINES]
    definitions = [_HOST_TIME, MXCSR_ROUTINES]
    definitions += [part for part in parts if not part.startswith("declare")]
    declarations = sorted({part for part in parts if part.startswith("declare")})
    return "\n".join([*declarations, *definitions, METADATA])
